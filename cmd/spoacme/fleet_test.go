package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spoacme/spoacme/store/consul"
	"github.com/spoacme/spoacme/store/storetest"
)

// fakeConsul answers reads of keys. Of what is below fails, as many reads as that fail, and blocking ones wait for ever.
type fakeConsul struct {
	keys  map[string][]byte
	below string
	fails atomic.Int64
}

func (f *fakeConsul) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Query().Get("index") != "" {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	key := strings.TrimPrefix(r.URL.Path, "/v1/kv/")
	if strings.HasPrefix(key, f.below) && f.fails.Add(-1) >= 0 {
		return nil, errors.New("connection reset by peer")
	}
	type pair struct {
		Key, Session string
		Value        []byte
		ModifyIndex  uint64
	}
	var found []pair
	_, all := r.URL.Query()["recurse"]
	for k, v := range f.keys {
		if k == key || all && strings.HasPrefix(k, key) {
			found = append(found, pair{k, "session", v, 7})
		}
	}
	body, err := json.Marshal(found)
	if err != nil {
		return nil, err
	}
	resp := &http.Response{StatusCode: http.StatusOK, Request: r, Body: io.NopCloser(bytes.NewReader(body)), Header: http.Header{"X-Consul-Index": {"7"}}}
	if found == nil {
		resp.StatusCode = http.StatusNotFound
	}
	return resp, nil
}

// A certificate of another tool that can't be read when it is announced is read again until it can.
func TestForeignIsReadAgain(t *testing.T) {
	ca := storetest.NewCA(t, "CA")
	bundle := ca.Bundle(storetest.Leaf{Domains: []string{"other.example.com"}})
	for name, follow := range map[string]func(*fleet, context.Context) error{
		"of all": (*fleet).FollowForeign,
		"of one": func(f *fleet, ctx context.Context) error {
			insist(ctx, f.log, "it", f.applyForeign, []string{"broken", "gone", "other"})
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := &fakeConsul{below: "le/certs/", keys: map[string][]byte{
					"le/leader":       []byte(`{"node":"b"}`),
					"le/certs/broken": []byte("no certificate"),
					"le/certs/other":  append(bundle.Chain(), bundle.Key()...),
				}}
				server.fails.Store(3)
				st, err := consul.Open(consul.Config{URL: "consul://127.0.0.1:8500/le", Node: "a", Transport: server, Getenv: func(string) string { return "" }})
				if err != nil {
					t.Fatal(err)
				}
				f := newFleet(st, slog.New(slog.DiscardHandler), "a", nil, func([]string) {})
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- follow(f, ctx) }()
				time.Sleep(time.Minute)
				found := f.foreignCertificates()
				if len(found) != 1 || found[0].Name != "other" || found[0].Fingerprint != bundle.Fingerprint {
					t.Errorf("known after a minute: %v", found)
				}
				if n := server.fails.Load(); n < -20 {
					t.Errorf("it was read %d times more than needed", -n)
				}
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
		})
	}
}
