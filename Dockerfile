# The sidecar alone: one static program, the roots that a CA's HTTPS is verified with, and the folders that it writes to.
# It runs as a user without rights, and needs no writable root.

FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=dev
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$VERSION" -o /out/spoacme ./cmd/spoacme && \
    mkdir -m 700 /out/state /out/run /out/keys

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/spoacme /spoacme
COPY --from=build --chown=10001:10001 /out/state /var/lib/spoacme
COPY --from=build --chown=10001:10001 /out/run /run/spoacme
COPY --from=build --chown=10001:10001 /out/keys /etc/spoacme
USER 10001:10001
ENTRYPOINT ["/spoacme"]
CMD ["run"]
