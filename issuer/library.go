package issuer

import (
	"log/slog"

	legolog "github.com/go-acme/lego/v4/log"
)

// LogLibrary sends what the ACME library says to log, at level debug. The library's logger is a package variable: call
// this once, in main.
func LogLibrary(log *slog.Logger) {
	legolog.Logger = slog.NewLogLogger(log.Handler(), slog.LevelDebug)
}
