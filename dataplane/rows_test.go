package dataplane

import (
	"errors"
	"net"
	"testing"
	"time"
)

// agent answers agent checks with what it is told.
func agent(t *testing.T, answer string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte(answer))
			_ = c.Close()
		}
	}()
	return ln.Addr().String()
}

func TestRealRows(t *testing.T) {
	each(t, func(t *testing.T, version string) {
		s, _ := withList(t, version)
		s.start()
		h := s.open()
		ctx := t.Context()
		address := agent(t, "")
		checks := RowChecks{Agent: address, Every: time.Hour}
		err := h.AddRow(ctx, "certificates", Row{Name: "shop", State: "down", Weight: 7}, checks)
		if version == "2.2" {
			if !errors.Is(err, ErrNoRows) {
				t.Fatalf("2.2: %v", err)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range []Row{{Name: "drain", State: "drain", Weight: 33}, {Name: "up.x", State: "up", Weight: 61}, {Name: "up.x", State: "up", Weight: 62}} {
			if err := h.AddRow(ctx, "certificates", r, checks); err != nil {
				t.Fatal(err)
			}
		}
		want(t, h, Row{Name: "shop", State: "down", Weight: 7}, Row{Name: "drain", State: "drain", Weight: 33}, Row{Name: "up.x", State: "up", Weight: 62})
		if err := h.SetRow(ctx, "certificates", Row{Name: "shop", State: "up", Weight: 90}); err != nil {
			t.Fatal(err)
		}
		if err := h.SetRow(ctx, "certificates", Row{Name: "drain", State: "up", Weight: 1}); err != nil {
			t.Fatal(err)
		}
		if err := h.SetRow(ctx, "certificates", Row{Name: "up.x", State: "down", Weight: 1}); err != nil {
			t.Fatal(err)
		}
		want(t, h, Row{Name: "shop", State: "up", Weight: 90}, Row{Name: "drain", State: "up", Weight: 1}, Row{Name: "up.x", State: "down", Weight: 1})
		for range 2 {
			if err := h.DelRow(ctx, "certificates", "drain"); err != nil {
				t.Fatal(err)
			}
		}
		want(t, h, Row{Name: "shop", State: "up", Weight: 90}, Row{Name: "up.x", State: "down", Weight: 1})
		if _, err := h.Rows(ctx, "nope"); !errors.Is(err, ErrNoRows) {
			t.Fatalf("no backend: %v", err)
		}
		if err := h.AddRow(ctx, "nope", Row{Name: "shop"}, checks); !errors.Is(err, ErrNoRows) {
			t.Fatalf("no backend: %v", err)
		}
		if err := h.SetRow(ctx, "certificates", Row{Name: "nope"}); err == nil {
			t.Fatal("a row that is not there was set")
		}
	})
}

func want(t *testing.T, h *HAProxy, rows ...Row) {
	t.Helper()
	got, err := h.Rows(t.Context(), "certificates")
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(rows) {
		t.Fatalf("rows %+v, want %+v", got, rows)
	}
	for i := range rows {
		got[i].Text, got[i].Agent = "", ""
		if got[i] != rows[i] {
			t.Fatalf("row %+v, want %+v", got[i], rows[i])
		}
	}
}

func TestRealRowAgent(t *testing.T) {
	each(t, func(t *testing.T, version string) {
		if version == "2.2" {
			return // no rows there
		}
		s, _ := withList(t, version)
		s.start()
		h := s.open()
		err := h.AddRow(t.Context(), "certificates", Row{Name: "shop", State: "down", Weight: 7},
			RowChecks{Agent: agent(t, "ready up 61% #expires in 54d\n"), Every: 50 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		s.wait("the agent's word counts", func() bool {
			rows, err := h.Rows(t.Context(), "certificates")
			return err == nil && len(rows) == 1 && rows[0].State == "up" && rows[0].Weight == 61
		})
	})
}
