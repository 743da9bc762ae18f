// Package status is what the operator sees: one view of every certificate (what is stored, what
// HAProxy serves, what happens next, what is wrong and what to do), rendered as a table, as JSON,
// as metrics, as readiness lines, and as rows of HAProxy's own statistics page.
//
// It decides nothing and changes no certificate. Everything in a View may be shown to anybody who
// may look: it holds no key, no token and no account.
package status

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/spoacme/spoacme/store"
)

// State is how a certificate is doing. One certificate has one state: the first that applies, in this order.
type State string

// The states.
const (
	Foreign  State = "foreign"  // another tool's, put into the fleet's store: deployed and never renewed
	Unwanted State = "unwanted" // stored, but nobody asks for it any more: it is not renewed
	Missing  State = "missing"  // wanted and not issued yet
	Expired  State = "expired"  // what is stored is past its end
	Drift    State = "drift"    // HAProxy serves something else than what is stored
	Failing  State = "failing"  // the last try to renew it failed
	Renewing State = "renewing" // its renewal is due or under way
	OK       State = "ok"
)

// States lists all states, the worst first.
func States() []State {
	return []State{Expired, Missing, Drift, Failing, Renewing, Unwanted, Foreign, OK}
}

// View is everything at one moment.
type View struct {
	Time         time.Time         `json:"time"`
	Node         string            `json:"node"`
	Version      string            `json:"version,omitempty"` // of the sidecar
	Role         string            `json:"role,omitempty"`    // in a fleet: node, edge or issuer
	HAProxy      HAProxy           `json:"haproxy"`
	Certificates []CertificateView `json:"certificates"` // by name
	Conditions   []Condition       `json:"conditions"`
	// Loading is set until the store was read once: that a certificate is not there means nothing yet.
	Loading bool   `json:"loading,omitempty"`
	Fleet   []Node `json:"fleet,omitempty"` // all nodes, this one too, by name; empty without a fleet
}

// Node is one node of the fleet.
type Node struct {
	Name  string `json:"name"`
	Role  string `json:"role,omitempty"`
	Live  bool   `json:"live"`  // its sidecar runs and reaches the store
	Leads bool   `json:"leads"` // it issues
	// Suspect nodes missed the tokens of an order in time: orders don't wait for them until they catch up.
	Suspect bool         `json:"suspect,omitempty"`
	Behind  bool         `json:"behind,omitempty"` // does not keep up with the changes in the store
	Differs []Difference `json:"differs,omitempty"`
}

// Difference is a certificate that a node does not serve as it is stored.
type Difference struct {
	Certificate string    `json:"certificate"`
	Fingerprint string    `json:"fingerprint,omitempty"` // what is served; empty for nothing
	Cause       string    `json:"cause"`                 // why, and what to do
	Since       time.Time `json:"since"`
}

// serves reports whether certificates are served on the node.
func (n Node) serves() bool { return n.Live && n.Role != roleIssuer }

// roleIssuer is the role of a node that has no HAProxy.
const roleIssuer = "issuer"

// HAProxy is the process beside the sidecar.
type HAProxy struct {
	Version string    `json:"version,omitempty"`
	PID     int       `json:"pid,omitempty"`
	Since   time.Time `json:"since,omitzero"` // when it started
	// Reachable is false when HAProxy did not answer; what it serves is then not known.
	Reachable bool `json:"reachable"`
}

// Condition is one thing that must hold for the node to do its work.
type Condition struct {
	Name    string `json:"name"`
	OK      bool   `json:"ok"`
	Message string `json:"message,omitempty"` // when not OK: what is wrong and what to do
}

// CertificateView is one certificate.
type CertificateView struct {
	Name    string   `json:"name"`
	Domains []string `json:"domains"`
	State   State    `json:"state"`
	// Error is what is wrong and what to do; empty when nothing is.
	Error       string    `json:"error,omitempty"`
	Stored      *Stored   `json:"stored,omitempty"`
	Served      *Served   `json:"served,omitempty"`
	Percent     int       `json:"percent_left"` // of the lifetime; 1 in the last moments, 0 only when it is over
	RenewAt     time.Time `json:"renew_at,omitzero"`
	Failures    int       `json:"failures,omitempty"` // in a row
	NextAttempt time.Time `json:"next_attempt,omitzero"`
	Nodes       Nodes     `json:"nodes"`
	// Note says how the nodes' haproxy.cfg disagree on it; empty when they do not.
	Note string `json:"note,omitempty"`
}

// Stored is the certificate in the store.
type Stored struct {
	Fingerprint string    `json:"fingerprint"` // SHA-1, upper-case hex
	Serial      string    `json:"serial"`
	Issuer      string    `json:"issuer"`
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`
}

// Served is what HAProxy serves under the certificate's name.
type Served struct {
	Fingerprint string    `json:"fingerprint"`     // empty when it serves nothing
	Since       time.Time `json:"since,omitzero"`  // when that was first seen
	Error       string    `json:"error,omitempty"` // what is wrong with it and what to do
}

// Nodes counts the nodes that serve what is stored, and those that should.
type Nodes struct {
	Serving int `json:"serving"`
	All     int `json:"all"`
}

func (n Nodes) String() string { return fmt.Sprintf("%d/%d", n.Serving, n.All) }

// Ready reports whether every condition holds.
func (v View) Ready() bool {
	return !slices.ContainsFunc(v.Conditions, func(c Condition) bool { return !c.OK })
}

// Certificate finds one by name.
func (v View) Certificate(name string) (CertificateView, bool) {
	i, ok := slices.BinarySearchFunc(v.Certificates, name, func(c CertificateView, n string) int { return cmp.Compare(c.Name, n) })
	if !ok {
		return CertificateView{}, false
	}
	return v.Certificates[i], true
}

// Input is what a View is built from. The records need neither chain nor key.
type Input struct {
	Now      time.Time
	Node     string
	Version  string
	Role     string // empty without a fleet
	HAProxy  HAProxy
	Wanted   []*store.Wanted
	Issued   []*store.Certificate
	Foreign  []*store.Certificate // of other tools, not renewed
	Fleet    []Node               // empty without a fleet
	Orders   []*store.Order
	Attempts []*store.Attempt
	// Served is what this node's HAProxy serves, by certificate name. With HAProxy reachable, a
	// name that is not in it is not served.
	Served     map[string]Served
	Conditions []Condition
	Loading    bool // see View
}
