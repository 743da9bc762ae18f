package main

import (
	"log/slog"
	"os"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/spoacme/spoacme/issuer"
	"github.com/spoacme/spoacme/settings"
)

func newRun() *cobra.Command {
	flags := map[string]*string{}
	var logJSON, newAccount bool
	c := &cobra.Command{
		Use:   "run",
		Short: "Run the sidecar",
		Long: "Run the sidecar beside HAProxy, in the foreground, until SIGTERM.\n\n" +
			"Every setting is read from, in this order: the flag, the sidecar's environment, HAProxy's setenv lines, the default.\n\n" +
			manual(),
		Example: "  spoacme run --socket /run/haproxy/admin.sock",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			frugal()
			level := new(slog.LevelVar)
			log := slog.New(handler(logJSON, level))
			issuer.LogLibrary(log)
			r := &runner{log: log, level: level, flags: flagValues(flags), env: environment(), newAccount: newAccount}
			return r.run(c.Context())
		},
	}
	addSettings(c, flags)
	c.Flags().BoolVar(&logJSON, "log-json", false, "log JSON lines")
	c.Flags().BoolVar(&newAccount, "new-account", false, "allow a new account at a CA where the store has certificates of it but not the account")
	return c
}

// frugal makes the garbage collector keep memory small: a sidecar stands on a machine that is there for HAProxy. With
// 10,000 certificates that saves a good part of the memory of a start, for little time. GOGC in the environment wins.
func frugal() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(30)
	}
}

// addSettings gives a command a flag per setting.
func addSettings(c *cobra.Command, flags map[string]*string) {
	for _, v := range settings.Describe() {
		if v.Flag != "" {
			flags[v.Name] = c.Flags().String(strings.TrimPrefix(v.Flag, "--"), "", v.Meaning)
		}
	}
}

// manual lists the variables with their defaults.
func manual() string {
	var b strings.Builder
	b.WriteString("Settings:\n")
	for _, v := range settings.Describe() {
		b.WriteString("  " + v.Name)
		if v.Default != "" {
			b.WriteString(" (default " + v.Default + ")")
		}
		b.WriteString("\n      " + v.Meaning)
		if v.Own {
			b.WriteString(" [not in haproxy.cfg]")
		}
		b.WriteString("\n")
	}
	return strings.TrimRight(b.String(), "\n")
}

func flagValues(flags map[string]*string) map[string]string {
	set := map[string]string{}
	for name, v := range flags {
		if *v != "" {
			set[name] = *v
		}
	}
	return set
}

func environment() map[string]string {
	env := map[string]string{}
	for _, kv := range os.Environ() {
		if k, v, ok := strings.Cut(kv, "="); ok {
			env[k] = v
		}
	}
	return env
}

func handler(asJSON bool, level slog.Leveler) slog.Handler {
	o := &slog.HandlerOptions{Level: level}
	if asJSON {
		return slog.NewJSONHandler(os.Stderr, o)
	}
	return slog.NewTextHandler(os.Stderr, o)
}
