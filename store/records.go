package store

import (
	"encoding/json"
	"time"
)

// Record is one of the structs below, always handled by pointer.
type Record interface {
	// Key is where the record is kept.
	Key() Key
	// Validate says what is wrong with the record itself, before it is written and after it was read.
	Validate() error

	header() *Meta
	secrets() []*Secret
	clone() Record
}

// Meta is in every record: the version of its form, and the fields of newer versions, which
// survive a rewrite by this one.
type Meta struct {
	Version int `json:"v"`
	unknown map[string]json.RawMessage
}

func (m *Meta) header() *Meta    { return m }
func (*Meta) secrets() []*Secret { return nil }

// Spec is what a certificate should be: the words of one SPOACME_CERT_<name> setting.
type Spec struct {
	Domains   []string `json:"domains"`             // lower case, A-labels, first one first; the others sorted as given
	Challenge string   `json:"challenge,omitempty"` // "http-01" (also when empty) or "dns-01"
	DNS       string   `json:"dns,omitempty"`       // DNS provider of dns-01
	Profile   string   `json:"profile,omitempty"`   // ACME profile
	KeyType   string   `json:"key,omitempty"`       // ec256 (also when empty), ec384, rsa2048, rsa3072, rsa4096
	CA        string   `json:"ca,omitempty"`        // directory URL; empty: the fleet's

	unknown map[string]json.RawMessage
}

// Wanted is what the leader acts on: the merged demand for one certificate.
type Wanted struct {
	Meta
	Name string `json:"name"`
	Spec Spec   `json:"spec"`
	// Generation grows with every change of Spec.
	Generation uint64 `json:"generation"`
	// Sources are the nodes whose haproxy.cfg asks for it; IssuedByHand is set by the issue command.
	Sources      []string `json:"sources,omitempty"`
	IssuedByHand bool     `json:"by_hand,omitempty"`
	// RenewAsked is when `renew` asked for a certificate newer than this; zero when never.
	RenewAsked time.Time `json:"renew_asked,omitzero"`
	// Note says in words for the operator how the nodes' haproxy.cfg disagree on it; empty when they do not.
	Note string `json:"note,omitempty"`
}

// Certificate is an issued certificate with its private key.
type Certificate struct {
	Meta
	Name    string   `json:"name"`
	Domains []string `json:"domains"` // as ordered
	Chain   string   `json:"chain"`   // PEM, leaf first
	Private Secret   `json:"private"` // PEM (PKCS#8)

	Serial      string    `json:"serial"`      // lower-case hex, no leading zeros
	Fingerprint string    `json:"fingerprint"` // SHA-1 of the leaf, upper-case hex, as HAProxy shows it
	Issuer      string    `json:"issuer"`      // common name of the leaf's issuer
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`

	CA         string    `json:"ca"`                   // directory URL
	URL        string    `json:"url,omitempty"`        // certificate URL at the CA
	Generation uint64    `json:"generation,omitempty"` // of the Wanted that it satisfies
	IssuedAt   time.Time `json:"issued_at"`            // when it was stored
	RenewAt    time.Time `json:"renew_at,omitzero"`    // the draw: when to renew
	ARIID      string    `json:"ari_id,omitempty"`     // RFC 9773 section 4.1
	// Before lists when certificates for the same names were issued in the week before this one.
	Before []time.Time `json:"before,omitempty"`
}

// Order is an order in flight, or the intent to place one (URL empty). Key is drawn before newOrder.
type Order struct {
	Meta
	Name       string    `json:"name"`
	CA         string    `json:"ca"`
	Account    string    `json:"account"` // id of the Account
	Spec       Spec      `json:"spec"`
	Generation uint64    `json:"generation"` // of the Wanted that it is for
	Private    Secret    `json:"private"`    // PEM (PKCS#8) of the certificate key
	URL        string    `json:"url,omitempty"`
	Started    time.Time `json:"started"`
	Finalized  bool      `json:"finalized,omitempty"` // finalize was about to be called
	Replaces   string    `json:"replaces,omitempty"`  // ARI id of the certificate that it replaces
	// Damaged is the digest of what came last in place of the certificate, DamagedAt when that came first.
	Damaged   string    `json:"damaged,omitempty"`
	DamagedAt time.Time `json:"damaged_at,omitzero"`
}

// Attempt is what went wrong last with a certificate and when the next try may start. It is
// written before the CA is called.
type Attempt struct {
	Meta
	Name     string    `json:"name"`
	CA       string    `json:"ca"`
	Failures int       `json:"failures"`            // in a row; a try that is under way counts as one
	CutShort int       `json:"cut_short,omitempty"` // tries since the last failure that ended without a verdict
	Tried    time.Time `json:"tried"`
	Next     time.Time `json:"next"` // no try before
	Error    string    `json:"error,omitempty"`
	Domain   string    `json:"domain,omitempty"` // the name that failed, when it is one
	// Limited says that Next is the CA's own demand (Retry-After): an operator's wish does not override it.
	Limited bool `json:"limited,omitempty"`
}

// Budget is how much of a CA's limits is used, and until when it wants no requests at all.
type Budget struct {
	Meta
	CA     string      `json:"ca"` // id: see CAID
	Orders []time.Time `json:"orders,omitempty"`
	Until  time.Time   `json:"until,omitzero"`
	Error  string      `json:"error,omitempty"`
}

// Account is an account at a CA.
type Account struct {
	Meta
	ID         string    `json:"id"`
	CA         string    `json:"ca"`
	Email      string    `json:"email,omitempty"`
	Private    Secret    `json:"private"` // PEM (PKCS#8)
	URL        string    `json:"url,omitempty"`
	Registered time.Time `json:"registered,omitzero"`
}

// Challenges is all http-01 tokens of one order. The key authorization of a token is
// token + "." + Thumbprint (RFC 8555 section 8.1).
type Challenges struct {
	Meta
	Name       string   `json:"name"`
	Generation uint64   `json:"generation"` // grows with every publication in the fleet
	Thumbprint string   `json:"thumbprint"`
	Tokens     []string `json:"tokens"`
}

// Demand is what one node's haproxy.cfg asks for.
type Demand struct {
	Meta
	Node         string          `json:"node"`
	Certificates map[string]Spec `json:"certificates"`
	Since        time.Time       `json:"since"` // when Certificates changed last
	// Seen is when the node last said that it still asks for this, every few hours. Zero: not known.
	Seen time.Time `json:"seen,omitzero"`
}

// What a Request asks for.
const (
	RequestIssue  = "issue"
	RequestRenew  = "renew"
	RequestRemove = "remove"
)

// Request is one command of an operator. The leader carries it out, sets Done, and deletes it later.
type Request struct {
	Meta
	ID          string    `json:"id"`
	Op          string    `json:"op"`
	Certificate string    `json:"certificate"`
	Spec        Spec      `json:"spec,omitzero"`
	Force       bool      `json:"force,omitempty"` // remove it even where HAProxy may need it to start
	Asked       time.Time `json:"asked"`
	Done        time.Time `json:"done,omitzero"`
	Error       string    `json:"error,omitempty"` // why it was refused
}

// Key implements Record.
func (r *Wanted) Key() Key      { return Key{KindWanted, r.Name} }
func (r *Certificate) Key() Key { return Key{KindIssued, r.Name} }
func (r *Order) Key() Key       { return Key{KindOrder, r.Name} }
func (r *Attempt) Key() Key     { return Key{KindAttempt, r.Name} }
func (r *Budget) Key() Key      { return Key{KindBudget, r.CA} }
func (r *Account) Key() Key     { return Key{KindAccount, r.ID} }
func (r *Challenges) Key() Key  { return Key{KindChallenges, r.Name} }
func (r *Demand) Key() Key      { return Key{KindDemand, r.Node} }
func (r *Request) Key() Key     { return Key{KindRequest, r.ID} }

func (r *Certificate) secrets() []*Secret { return []*Secret{&r.Private} }
func (r *Order) secrets() []*Secret       { return []*Secret{&r.Private} }
func (r *Account) secrets() []*Secret     { return []*Secret{&r.Private} }

func (r *Wanted) clone() Record      { c := *r; return &c }
func (r *Certificate) clone() Record { c := *r; return &c }
func (r *Order) clone() Record       { c := *r; return &c }
func (r *Attempt) clone() Record     { c := *r; return &c }
func (r *Budget) clone() Record      { c := *r; return &c }
func (r *Account) clone() Record     { c := *r; return &c }
func (r *Challenges) clone() Record  { c := *r; return &c }
func (r *Demand) clone() Record      { c := *r; return &c }
func (r *Request) clone() Record     { c := *r; return &c }
