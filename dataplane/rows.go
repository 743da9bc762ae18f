package dataplane

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/spoacme/spoacme/store"
)

// ErrNoRows means that this HAProxy can't have rows added: it is older than 2.6, or has no such backend.
var ErrNoRows = errors.New("HAProxy can't show certificates as servers")

// Row is a server row of HAProxy's statistics page that stands for a certificate.
type Row struct {
	Name   string
	State  string // "up", "drain", "down"; read back: also "maint"
	Weight int    // per cent, 1 to 100
	Text   string // what the last agent check said; not set by us
	Agent  string // read back: address of its agent check; "" for none
	Probed bool   // read back: it has a health check
}

// RowChecks is who tells HAProxy about a row from then on.
type RowChecks struct {
	Agent string        // address of the agent that answers NAME| with a state (HAProxy's agent-check)
	Every time.Duration // between two agent checks
	Probe string        // HAProxy's own TLS address for a real handshake; "" for none
	SNI   string        // server name of the handshake
}

// Rows reads the rows of a backend.
func (h *HAProxy) Rows(ctx context.Context, backend string) ([]Row, error) {
	a, err := arg(backend)
	if err != nil {
		return nil, err
	}
	answer, err := h.raw(ctx, "show stat "+a+" 4 -1")
	if err != nil {
		if has(err, "No such proxy") {
			return nil, fmt.Errorf("%w: there is no backend %s; add it to haproxy.cfg and reload", ErrNoRows, backend)
		}
		return nil, fmt.Errorf("read statistics: %w", err)
	}
	rows, err := parseRows(string(answer), backend)
	if err != nil || len(rows) == 0 {
		return rows, err
	}
	return rows, h.readAgents(ctx, backend, rows)
}

// readAgents fills in the addresses of the rows' agent checks; HAProxy 2.2 does not tell them.
func (h *HAProxy) readAgents(ctx context.Context, backend string, rows []Row) error {
	answer, err := h.raw(ctx, "show servers state "+backend)
	if err != nil {
		return fmt.Errorf("read state of servers: %w", err)
	}
	agents, column := map[string]string{}, map[string]int{}
	for l := range strings.Lines(string(answer)) {
		f := strings.Fields(strings.TrimPrefix(l, "# "))
		if strings.HasPrefix(l, "#") {
			for i, name := range f {
				column[name] = i
			}
			continue
		}
		addr, hasAddr := column["srv_agent_addr"]
		port, hasPort := column["srv_agent_port"]
		if name := column["srv_name"]; hasAddr && hasPort && max(addr, port, name) < len(f) && f[addr] != "-" {
			agents[f[name]] = net.JoinHostPort(f[addr], f[port])
		}
	}
	for i := range rows {
		rows[i].Agent = agents[rows[i].Name]
	}
	return nil
}

func parseRows(answer, backend string) ([]Row, error) {
	records, err := statistics(answer)
	if err != nil {
		return nil, err
	}
	var rows []Row
	for _, r := range records {
		if r.get("pxname") != backend || r.get("svname") == "" {
			continue
		}
		weight, _ := strconv.Atoi(r.get("uweight"))
		rows = append(rows, Row{Name: r.get("svname"), State: rowState(r.get("status")), Weight: weight, Text: line(r.get("last_agt")),
			Probed: r.get("check_status") != ""})
	}
	return rows, nil
}

// statistic is one line of the answer to `show stat`.
type statistic struct {
	column map[string]int
	fields []string
}

func (s statistic) get(name string) string {
	if i, ok := s.column[name]; ok && i < len(s.fields) {
		return s.fields[i]
	}
	return ""
}

func statistics(answer string) ([]statistic, error) {
	r := csv.NewReader(strings.NewReader(strings.TrimLeft(answer, "\n# ")))
	r.FieldsPerRecord = -1
	records, err := r.ReadAll()
	if err != nil || len(records) == 0 {
		return nil, fmt.Errorf("read statistics: not understood: %s", line(answer))
	}
	column := map[string]int{}
	for i, name := range records[0] {
		column[name] = i
	}
	all := make([]statistic, 0, len(records)-1)
	for _, rec := range records[1:] {
		all = append(all, statistic{column, rec})
	}
	return all, nil
}

func rowState(status string) string {
	word, _, _ := strings.Cut(strings.ToLower(status), " ")
	if word == "no" { // "no check"
		return "up"
	}
	return word
}

// AddRow adds a row that never claims a state it does not have: it is out of service until state and weight
// are set. HAProxy 2.6 or newer.
func (h *HAProxy) AddRow(ctx context.Context, backend string, row Row, c RowChecks) error {
	server, err := rowName(backend, row.Name)
	if err != nil {
		return err
	}
	if p, err := h.Process(ctx); err != nil {
		return err
	} else if !p.AtLeast(2, 6) {
		return fmt.Errorf("%w: it is %s, 2.6 is needed", ErrNoRows, p.Version)
	}
	attributes, err := c.attributes(row.Name)
	if err != nil {
		return err
	}
	commands := "add server " + server + " " + attributes + ";enable agent " + server + ";" + row.commands(server)
	if c.Probe != "" {
		commands += ";enable health " + server
	}
	err = h.rowCommands(ctx, server, commands)
	if has(err, "No such backend") {
		return fmt.Errorf("%w: there is no backend %s; add it to haproxy.cfg and reload", ErrNoRows, backend)
	}
	return err
}

func (c RowChecks) attributes(name string) (string, error) {
	host, port, err := net.SplitHostPort(c.Agent)
	if err != nil {
		return "", fmt.Errorf("add row %s: address of the agent: %w", name, err)
	}
	every := c.Every
	if every <= 0 {
		every = 5 * time.Second
	}
	address := c.Agent
	probe := ""
	if c.Probe != "" {
		address = c.Probe
		probe = " check check-ssl verify none"
		if c.SNI != "" {
			probe += " check-sni " + c.SNI
		}
	}
	return fmt.Sprintf("%s weight 100%s agent-check agent-addr %s agent-port %s agent-send %s| agent-inter %dms",
		address, probe, host, port, name, every.Milliseconds()), nil
}

// SetRow sets state and weight of a row at once; agent checks may change them later.
func (h *HAProxy) SetRow(ctx context.Context, backend string, row Row) error {
	server, err := rowName(backend, row.Name)
	if err != nil {
		return err
	}
	return h.rowCommands(ctx, server, row.commands(server))
}

func (r Row) commands(server string) string {
	agent, state := "up", "ready"
	switch r.State {
	case "down":
		agent = "down"
	case "drain":
		state = "drain"
	}
	weight := min(max(r.Weight, 1), 100)
	return fmt.Sprintf("set server %[1]s agent %[2]s;set server %[1]s weight %[3]d%%;set server %[1]s state %[4]s", server, agent, weight, state)
}

// DelRow deletes a row; no error when there is none.
func (h *HAProxy) DelRow(ctx context.Context, backend, name string) error {
	server, err := rowName(backend, name)
	if err != nil {
		return err
	}
	err = h.rowCommands(ctx, server, "set server "+server+" state maint;del server "+server)
	if has(err, "No such server") {
		return nil
	}
	return err
}

func rowName(backend, name string) (string, error) {
	if err := store.ValidName(name); err != nil {
		return "", err
	}
	if _, err := arg(backend); err != nil || strings.ContainsAny(backend, "/ ") {
		return "", fmt.Errorf("backend %q can't be said to HAProxy", backend)
	}
	return backend + "/" + name, nil
}

// rowCommands runs commands that do not answer anything when they succeed, or a notice. HAProxy 2.6 does not end
// the answers to some of them as all others are ended: "show info" does.
func (h *HAProxy) rowCommands(ctx context.Context, server, commands string) error {
	answer, err := h.raw(ctx, commands+";show info")
	if err != nil && answer == nil {
		return fmt.Errorf("set row %s: %w", server, err)
	}
	for l := range strings.Lines(string(answer)) {
		if err := refused([]byte(l)); err != nil && !has(err, "lready exists") {
			return fmt.Errorf("set row %s: %w", server, err)
		}
	}
	return nil
}
