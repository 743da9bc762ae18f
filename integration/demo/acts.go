package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
)

// What haproxy-conf/haproxy.cfg asks for.
var shop = []string{"shop.example.com", "www.shop.example.com"}

// What is added at run time.
const second = "second.example.com"

// patienceForCA is far above what an order takes on a busy machine.
const patienceForCA = time.Minute

// seen is what was true after a part of the demo.
type seen struct {
	pid    int
	serial string
}

// firstCertificate starts the sidecar and waits until HAProxy serves what haproxy.cfg asks for.
func firstCertificate(ctx context.Context, screen *screen, w *world) (seen, error) {
	screen.title("1. haproxy.cfg asks for a certificate: setenv SPOACME_CERT_shop " + strings.Join(shop, ","))
	before, err := w.haproxy.PID()
	if err != nil {
		return seen{}, err
	}
	if served, err := w.served(ctx, shop...); err == nil {
		return seen{}, fmt.Errorf("serial %s is served before anything was done", served.Serial)
	}
	var served fixture.Served
	err = screen.step(ctx, "spoacme run", func(func(string)) (string, error) {
		if err := w.launchSidecar(); err != nil {
			return "", err
		}
		return "obtained and served", fixture.Await(ctx, patienceForCA, func() (err error) {
			served, err = w.served(ctx, shop...)
			return err
		})
	})
	if err != nil {
		return seen{}, err
	}
	err = fixture.Await(ctx, 5*time.Second, func() error {
		if w.answers() < len(shop) {
			return errors.New("HAProxy has not logged the challenges")
		}
		return nil
	})
	after, pidErr := w.haproxy.PID()
	if pidErr != nil {
		return seen{}, pidErr
	}
	asked := len(w.pebble.Asked())
	err = errors.Join(err,
		screen.proof(w.answers() >= len(shop), "challenges", "%d asked by Pebble, %d answered by HAProxy through SPOE", asked, w.answers()))
	screen.fact("issuer", "%s", served.Issuer)
	screen.fact("serial", "%s", served.Serial)
	screen.fact("names", "%s", strings.Join(served.Leaf().DNSNames, ", "))
	err = errors.Join(err, screen.proof(before == after, "HAProxy's pid", "%d before, %d after", before, after))
	return seen{pid: after, serial: served.Serial}, err
}

// underLoad renews a certificate and adds one while TLS clients are at work.
func underLoad(ctx context.Context, screen *screen, w *world, first seen) error {
	const clients = 4
	screen.title("2. A renewal and a second certificate, under live connections")
	load := fixture.StartLoad(fixture.LoadOptions{Addr: w.haproxy.HTTPS.Addr(), Name: shop[0], New: clients, KeepAlive: clients})
	defer load.Stop()
	err := screen.step(ctx, "clients", func(func(string)) (string, error) {
		return fmt.Sprintf("%d with a new TLS connection per request, %d that keep theirs", clients, clients), awaitRequests(ctx, load, 200)
	})
	if err != nil {
		return err
	}
	renewed, err := w.command(ctx, screen, shop, "renew", "shop")
	if err != nil {
		return err
	}
	swapped := time.Now()
	added, err := w.command(ctx, screen, []string{second}, "issue", "second", second)
	if err != nil {
		return err
	}
	if err := awaitRequests(ctx, load, load.Report().Requests+200); err != nil {
		return err
	}
	report := load.Stop()
	after, err := w.haproxy.PID()
	if err != nil {
		return err
	}
	screen.fact("serials", "shop %s before, %s after; second %s", first.serial, renewed.Serial, added.Serial)
	return errors.Join(
		screen.proof(onlyThese(report, swapped, first.serial, renewed.Serial), "clients saw", "%s", history(report)),
		screen.proof(report.Failed == 0, "requests", "%d, of these failed: %d", report.Requests+report.Failed, report.Failed),
		screen.proof(first.pid == after, "HAProxy's pid", "%d before, %d after: no reload", first.pid, after),
		errors.Join(report.Errors...),
	)
}

// command runs a command of spoacme as a user would, and then looks at what HAProxy serves.
func (w *world) command(ctx context.Context, screen *screen, names []string, args ...string) (fixture.Served, error) {
	var served fixture.Served
	err := screen.step(ctx, "$ spoacme", func(func(string)) (string, error) {
		out, err := w.sidecar.Run(ctx, args...)
		if err == nil {
			served, err = w.served(ctx, names...)
		}
		if err != nil {
			return "", fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
		}
		return strings.Join(args, " "), nil
	})
	return served, err
}

// onlyThese tells whether new connections got the old certificate and then the new one, and the old one never after the
// swap had been reported.
func onlyThese(report fixture.LoadReport, swapped time.Time, before, after string) bool {
	s := report.Serials
	return len(s) == 2 && s[0].Serial == before && s[1].Serial == after && s[0].Last.Before(swapped)
}

// history says which certificates new connections got, in order.
func history(report fixture.LoadReport) string {
	var parts []string
	for _, s := range report.Serials {
		parts = append(parts, fmt.Sprintf("%s in %d handshakes", s.Serial, s.Handshakes))
	}
	return strings.Join(parts, ", then ")
}

func awaitRequests(ctx context.Context, load *fixture.Load, n int) error {
	return fixture.Await(ctx, 30*time.Second, func() error {
		if got := load.Report(); got.Requests < n && got.Failed == 0 {
			return fmt.Errorf("%d of %d requests", got.Requests, n)
		}
		return nil
	})
}

// leave shows the state of things and what to try next.
func (w *world) leave(ctx context.Context, screen *screen, once bool) error {
	out, err := w.sidecar.Run(ctx, "status")
	if err != nil {
		return fmt.Errorf("spoacme status: %w\n%s", err, out)
	}
	screen.title("$ spoacme status")
	screen.text(out)
	if once {
		return nil
	}
	root, err := w.pebble.Management(ctx, "/roots/0")
	if err != nil {
		return err
	}
	rootFile := filepath.Join(w.dir, "root.pem")
	if err := os.WriteFile(rootFile, root, 0o644); err != nil {
		return fmt.Errorf("write the root: %w", err)
	}
	screen.title("Try it, in another terminal:")
	screen.text("export SPOACME_CONTROL=" + w.sidecar.Control())
	for _, args := range []string{"status --watch", "renew shop", "issue third third.example.com"} {
		screen.text(w.program + " " + args)
	}
	screen.text(fmt.Sprintf("curl --cacert %s --connect-to ::%s https://%s/", rootFile, w.haproxy.HTTPS.Addr(), second))
	screen.title("Look at it:")
	screen.fact("statistics", "http://%s/", w.haproxy.Stats.Addr())
	screen.fact("metrics", "http://%s/metrics", w.haproxy.Sidecar.Addr())
	screen.fact("haproxy.cfg", "%s", filepath.Join(w.haproxy.ConfigDir(), "haproxy.cfg"))
	screen.fact("spoacme's log", "%s", filepath.Join(w.dir, "spoacme", "spoacme.log"))
	screen.title("Ctrl-C ends everything and removes " + w.dir)
	return nil
}
