package dataplane

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spoacme/spoacme/store"
)

// otherSet opens a transaction as another tool would.
func (s *site) otherSet(file string, b *store.Bundle) string {
	return s.cli("set ssl cert " + file + " <<\n" + string(b.PEM()))
}

// TestRealKilledTool: another tool died between set and commit. It is waited for, then its transaction is aborted;
// no name ever serves another's certificate.
func TestRealKilledTool(t *testing.T) {
	each(t, func(t *testing.T, version string) {
		s, c := withList(t, version)
		s.start()
		h := s.open(func(c *Config) { c.timing.patience = 700 * time.Millisecond })
		shop := c.issue(t, leaf{names: []string{"shop.example"}, age: time.Hour})
		other := c.issue(t, leaf{names: []string{"other.example"}, age: time.Hour})
		deploy(t, h, "shop", shop)
		deploy(t, h, "other", other)
		theirs := c.issue(t, leaf{names: []string{"theirs.example"}})
		for _, file := range []string{"other", "shop"} { // another certificate's transaction, and our own's
			if got := s.otherSet(s.crtDir+"/"+file+".pem", theirs); !strings.Contains(got, "Transaction created") {
				t.Fatalf("the other tool: %s", got)
			}
			renewed := c.issue(t, leaf{names: []string{"shop.example"}})
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			_, err := h.Deploy(ctx, Unit{Name: "shop", Bundle: renewed})
			cancel()
			if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), file+".pem") {
				t.Fatalf("while it is open: %v", err)
			}
			if s.serves("shop.example") == renewed.Fingerprint {
				t.Fatal("swapped in spite of another's transaction")
			}
			begun := time.Now()
			deploy(t, h, "shop", renewed)
			if took := time.Since(begun); took < 300*time.Millisecond || took > 5*time.Second {
				t.Fatalf("aborted after %s", took)
			}
			if s.serves("shop.example") != renewed.Fingerprint || s.serves("other.example") != other.Fingerprint {
				t.Fatal("a name serves something else")
			}
			shop = renewed
		}
	})
}

// TestRealOwnTransaction: a sidecar was killed between set and commit; the next one goes on at once.
func TestRealOwnTransaction(t *testing.T) {
	each(t, func(t *testing.T, version string) {
		s, c := withList(t, version)
		s.start()
		h := s.open()
		shop := c.issue(t, leaf{names: []string{"shop.example"}, age: time.Hour})
		deploy(t, h, "shop", shop)
		renewed := c.issue(t, leaf{names: []string{"shop.example"}})
		s.otherSet(s.crtDir+"/shop.pem", renewed)
		src := &liveSource{}
		src.set("shop", renewed)
		run(t, h, src)
		begun := time.Now()
		s.wait("the renewed one is served", func() bool { return s.serves("shop.example") == renewed.Fingerprint })
		if took := time.Since(begun); took > time.Second {
			t.Fatalf("after %s", took)
		}
	})
}

// TestRealTwoTools: another tool swaps its own certificates all the time, without looking, with and without
// committing. Ours are right after every Deploy, and theirs never go under our names, nor ours under theirs.
func TestRealTwoTools(t *testing.T) {
	each(t, func(t *testing.T, version string) {
		s, c := withList(t, version)
		s.start()
		h := s.open(func(c *Config) { c.timing.patience = 300 * time.Millisecond; c.Logger = nil })
		deploy(t, h, "shop", c.issue(t, leaf{names: []string{"shop.example"}, age: 24 * time.Hour}))
		deploy(t, h, "theirs", c.issue(t, leaf{names: []string{"theirs.example"}, age: 24 * time.Hour}))
		file := s.crtDir + "/theirs.pem"
		theirs := map[string]bool{}
		var bundles []*store.Bundle
		for range 10 {
			b := c.issue(t, leaf{names: []string{"theirs.example"}})
			theirs[b.Fingerprint] = true
			bundles = append(bundles, b)
		}
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(3 * time.Millisecond):
				}
				got := s.otherSet(file, bundles[i%10])
				if strings.Contains(got, "Transaction created for certificate "+file) && i%7 != 0 {
					s.cli("commit ssl cert " + file)
				}
				if i%20 == 0 { // as it is, it would never let go of what it left open
					<-time.After(500 * time.Millisecond)
				}
			}
		})
		wrong := ""
		for i := range 40 {
			b := c.issue(t, leaf{names: []string{"shop.example"}, age: time.Duration(60-i) * time.Minute})
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			_, err := h.Deploy(ctx, Unit{Name: "shop", Bundle: b})
			cancel()
			if err != nil && !errors.Is(err, errRetry) && !transient(err) {
				wrong = fmt.Sprintf("deploy: %v", err)
				break
			}
			if got := s.serves("shop.example"); err == nil && got != b.Fingerprint || theirs[got] {
				wrong = "shop serves " + got
				break
			}
		}
		close(stop)
		wg.Wait()
		if wrong != "" {
			t.Fatal(wrong)
		}
	})
}

func TestRealUnusedAndRefused(t *testing.T) {
	each(t, func(t *testing.T, version string) {
		s, c := withList(t, version)
		s.start()
		h := s.open()
		deploy(t, h, "shop", c.issue(t, leaf{names: []string{"shop.example"}}))

		// HAProxy does not load a key of 512 bits: it must not be on disk either.
		list := must(readAll(s.crtList))
		weak := c.issue(t, leaf{names: []string{"weak.example"}, rsa: 1024})
		if _, err := h.Deploy(t.Context(), Unit{Name: "weak", Bundle: weak}); err == nil {
			if s.serves("weak.example") != weak.Fingerprint {
				t.Fatal("false success")
			}
		} else {
			if !strings.Contains(err.Error(), "HAProxy refuses the certificate") {
				t.Fatal(err)
			}
			if got := must(readAll(s.crtList)); got != list {
				t.Fatalf("crt-list %q", got)
			}
			if strings.Contains(s.cli("show ssl cert"), "weak.pem") {
				t.Fatal("HAProxy has the name of a certificate that it refused")
			}
		}
		if err := s.check(); err != nil {
			t.Fatal(err)
		}

		// Too big for the buffer: refused before anything is sent, but on disk.
		big := c.issue(t, leaf{names: []string{"big.example"}, pad: 14000})
		_, err := h.Deploy(t.Context(), Unit{Name: "big", Bundle: big})
		if !errors.Is(err, ErrTooBig) || !strings.Contains(err.Error(), "write `tune.bufsize 32768` in the global section and restart HAProxy") {
			t.Fatalf("big: %v", err)
		}
		if strings.Contains(s.cli("show ssl cert"), "big.pem") {
			t.Fatal("HAProxy has its name")
		}
		if err := s.check(); err != nil {
			t.Fatal(err)
		}
		s.reload()
		if s.serves("big.example") != big.Fingerprint {
			t.Fatal("a reload does not take it")
		}
	})
}

func readAll(path string) (string, error) {
	b, _, err := readFile(path, maxListFile)
	return string(b), err
}

// TestRealBuffer: the largest certificate that is let through is one that HAProxy takes, with the usual and with
// a larger buffer.
func TestRealBuffer(t *testing.T) {
	each(t, func(t *testing.T, version string) {
		for _, size := range []int{16384, 32768} {
			s, c := withList(t, version)
			s.config = strings.Replace(s.config, "global\n", fmt.Sprintf("global\n    tune.bufsize %d\n", size), 1)
			s.start()
			h := s.open()
			for _, pad := range []int{size*3/4 - 1500, size*3/4 - 1200, size*3/4 - 1100, size*3/4 - 1060, size*3/4 - 1000, size * 3 / 4} {
				b := c.issue(t, leaf{names: []string{"big.example"}, pad: pad, age: time.Duration(size-pad) * time.Minute})
				_, err := h.Deploy(t.Context(), Unit{Name: "big", Bundle: b})
				t.Logf("bufsize %d, PEM of %d bytes: %v", size, len(b.PEM()), err)
				if n := len(b.PEM()); err != nil && (!errors.Is(err, ErrTooBig) || n < size-1000) || err == nil && n > size {
					t.Fatalf("bufsize %d, PEM of %d bytes: %v", size, n, err)
				}
			}
			if s.pid() == 0 {
				t.Fatal("HAProxy died")
			}
		}
	})
}
