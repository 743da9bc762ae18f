package settings

import (
	"encoding/base64"
	"fmt"
	"log/slog"
	"net/mail"
	"slices"
	"strings"

	"github.com/spoacme/spoacme/store"
)

const (
	prefix     = "SPOACME_"
	certPrefix = "SPOACME_CERT_"
	certsName  = "SPOACME_CERTS"
	eabKeyID   = "SPOACME_EAB_KID"
	eabHMAC    = "SPOACME_EAB_HMAC"
)

// Variable describes one setting: what --help and the manual print.
type Variable struct {
	Name    string // "SPOACME_CA"
	Flag    string // "--ca"; empty when there is none
	Default string // as it would be written; empty when there is none
	Meaning string
	// Own is set when haproxy.cfg can't set it: it is needed before HAProxy is asked, or is a secret.
	Own bool
}

type variable struct {
	Variable
	set func(s *Settings, value string) error
}

// Describe returns every variable with its default and meaning, in the order of the manual.
func Describe() []Variable {
	var all []Variable
	for _, v := range table() {
		if v.Meaning != "" {
			all = append(all, v.Variable)
		}
	}
	return append(all,
		Variable{Name: certsName, Meaning: "names of the certificates, separated by commas; only these count"},
		Variable{Name: certPrefix + "<name>", Meaning: "domains of one certificate and its options, separated by commas, no spaces: " +
			"challenge=http-01|dns-01, dns=PROVIDER, profile=NAME, key=" + strings.Join(keyTypes(), "|") + ", ca=NAME-OR-URL"},
	)
}

// table is the manual and the parser in one. An entry without a meaning is known only to be refused.
func table() []variable {
	return []variable{
		own("SOCKET", "", "path of HAProxy's stats socket (level admin); default: the usual places", setPath(func(s *Settings) *string { return &s.Socket })),
		own("STATE", "/var/lib/spoacme", "directory for what the sidecar keeps itself", setPath(func(s *Settings) *string { return &s.State })),
		own("CONTROL", "/run/spoacme/spoacme.sock", "unix socket between the sidecar and the other commands", setPath(func(s *Settings) *string { return &s.Control })),
		entry("NODE", "", "name of this node; default: the host's name", setName(func(s *Settings) *string { return &s.Node })),
		entry("EMAIL", "", "e-mail address of the account at the CA; may be left out", setEmail),
		entry("CA", "letsencrypt", "certificate authority: "+strings.Join(caNames(), ", ")+", or a directory URL; of several, separated by commas, the first that works", setCAs),
		entry("CA_ROOTS", "", "PEM file with the roots of a private ACME server's HTTPS", setPath(func(s *Settings) *string { return &s.CARoots })),
		secret("EAB_KID", "key id of an external account binding, for a CA that asks for one", setKeyID),
		secret("EAB_HMAC", "its key (base64url)", setHMAC),
		entry("STORE", "", "where certificates are kept: file:///DIR, or consul://HOST:PORT/PREFIX[?dc=NAME] for a fleet; default: file:// and SPOACME_STATE", setStore),
		entry("ROLE", "node", "what this sidecar does in a fleet: node (serves and may lead), edge (serves only), issuer (leads only)", setRole),
		own("FLEET_KEYS", "", "keyset that seals certificates' keys in Consul, made by `spoacme keygen`; on every sidecar", setPath(func(s *Settings) *string { return &s.FleetKeys })),
		own("ISSUER_KEYS", "", "keyset that seals accounts and open orders in Consul; on every sidecar that may lead", setPath(func(s *Settings) *string { return &s.IssuerKeys })),
		entry("SEAL", "", "plain: store private keys in Consul as they are, and certificates in the classic form too (base64 of chain and key under certs/); from-plain: read what is stored so and seal it, for the time of the change", setSeal),
		entry("CRT_LIST", "", "crt-list file, or certificate directory, that certificates are added to; default: the only one that HAProxy has loaded", setPathAsLoaded(func(s *Settings) *string { return &s.CrtList })),
		entry("CRT_DIR", "", "folder of the PEM files; default: the folder of the crt-list", setPath(func(s *Settings) *string { return &s.CrtDir })),
		entry("AGENT", "127.0.0.1:9765", "address of the SPOE agent, HOST:PORT or unix@/PATH; haproxy.cfg uses it too: server agent \"${SPOACME_AGENT}\"", setListen(func(s *Settings) *string { return &s.Agent })),
		entry("AGENT_BACKEND", "acme_agent", "HAProxy's backend with the SPOE agent", setName(func(s *Settings) *string { return &s.AgentBackend })),
		entry("AGENT_CHECK", "127.0.0.1:9767", "address that HAProxy's agent checks ask for the state of certificates, HOST:PORT, or off", setOff(setTCP(func(s *Settings) *string { return &s.AgentCheck }))),
		entry("ROWS_BACKEND", "certificates", "HAProxy's backend with one statistics row per certificate", setName(func(s *Settings) *string { return &s.RowsBackend })),
		entry("HTTP", "127.0.0.1:9766", "address of /metrics, /healthz, /readyz and /status, HOST:PORT or unix@/PATH, or off", setOff(setListen(func(s *Settings) *string { return &s.HTTP }))),
		entry("PROBE", "", "HAProxy's own TLS address, HOST:PORT: every certificate is then also checked by a handshake", setTCP(func(s *Settings) *string { return &s.Probe })),
		entry("HTTP_FRONTEND", "", "HAProxy's own port-80 address, HOST:PORT: `check` sends a challenge through it", setTCP(func(s *Settings) *string { return &s.HTTPFrontend })),
		entry("LOG", "info", "least level that is logged: debug, info, warn or error", setLog),
	}
}

func entry(name, def, meaning string, set func(*Settings, string) error) variable {
	return variable{Variable{Name: prefix + name, Flag: flagName(prefix + name), Default: def, Meaning: meaning}, set}
}

// own is a setting that is needed before HAProxy is asked.
func own(name, def, meaning string, set func(*Settings, string) error) variable {
	v := entry(name, def, meaning, set)
	v.Own = true
	return v
}

// secret is an own setting that has no flag either: command lines are visible to all users.
func secret(name, meaning string, set func(*Settings, string) error) variable {
	v := own(name, "", meaning, set)
	v.Flag = ""
	return v
}

func flagName(name string) string {
	return "--" + strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(name, prefix), "_", "-"))
}

func errorf(format string, args ...any) error { return fmt.Errorf(format, args...) }

func setName(field func(*Settings) *string) func(*Settings, string) error {
	return func(s *Settings, value string) error {
		if err := validName(value); err != nil {
			return err
		}
		*field(s) = value
		return nil
	}
}

func setEmail(s *Settings, value string) error {
	a, err := mail.ParseAddress(strings.TrimPrefix(value, "mailto:"))
	if err != nil || a.Name != "" || strings.ContainsAny(value, "<> ,\"") {
		return errorf("%q is not an e-mail address: write one, such as ops@example.com", short(value))
	}
	s.Email = a.Address
	return nil
}

func setRole(s *Settings, value string) error {
	roles := []string{"node", "edge", "issuer"}
	if !slices.Contains(roles, value) {
		return errorf("%q is not a role: %s", short(value), nearestOr(value, roles))
	}
	s.Role = value
	return nil
}

func setSeal(s *Settings, value string) error {
	switch value {
	case "plain":
		s.SealPlain = true
	case "from-plain":
		s.SealFromPlain = true
	default:
		return errorf("%q: use plain, or from-plain on the way back from it; without it, keys are sealed with SPOACME_FLEET_KEYS and SPOACME_ISSUER_KEYS", short(value))
	}
	return nil
}

func setKeyID(s *Settings, value string) error {
	s.EAB.KeyID = value
	return nil
}

func setHMAC(s *Settings, value string) error {
	text := strings.TrimRight(strings.NewReplacer("+", "-", "/", "_").Replace(value), "=")
	if key, err := base64.RawURLEncoding.DecodeString(text); err != nil || len(key) < 16 {
		return errorf("not a base64url key: copy it once more from the CA's page")
	}
	s.EAB.HMAC = store.NewSecret([]byte(text))
	return nil
}

func setLog(s *Settings, value string) error {
	levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
	level, ok := levels[strings.ToLower(value)]
	if !ok {
		return errorf("%q is not a level: write debug, info, warn or error", short(value))
	}
	s.LogLevel = level
	return nil
}

// short cuts a value for a message.
func short(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
