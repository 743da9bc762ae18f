package main

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/spoacme/spoacme/dataplane"
)

func TestAside(t *testing.T) {
	var up []string
	var lost, failed error
	a := &aside{
		log: slog.New(slog.DiscardHandler), reachable: func() error { return lost },
		servers: func(context.Context) ([]dataplane.Row, error) {
			rows := []dataplane.Row{{Name: "agent", State: "down"}, {Name: "peer", State: "down"}}
			for _, name := range up {
				for i := range rows {
					if rows[i].Name == name {
						rows[i].State = "up"
					}
				}
			}
			return rows, failed
		},
	}
	away := errors.New("out of reach")
	for i, step := range []struct {
		lost   error
		up     []string
		failed error
		fit    bool
	}{
		{nil, []string{"agent", "peer"}, nil, true},
		{away, []string{"agent"}, nil, true},                   // nobody else is there
		{away, []string{"agent", "peer"}, nil, false},          // somebody is
		{away, []string{"peer"}, nil, false},                   // HAProxy has noticed
		{away, nil, errors.New("HAProxy is restarted"), false}, // that says nothing
		{away, nil, nil, true},                                 // the other one has gone
		{away, []string{"agent", "peer"}, nil, true},           // it comes and goes: no taking turns
		{nil, []string{"agent", "peer"}, nil, true},            // all is well
		{away, []string{"agent", "peer"}, nil, false},
		{nil, []string{"peer"}, nil, true},
	} {
		lost, up, failed = step.lost, step.up, step.failed
		a.decide(t.Context())
		if a.fit() != step.fit {
			t.Errorf("step %d: fit %t, want %t", i, a.fit(), step.fit)
		}
	}
}
