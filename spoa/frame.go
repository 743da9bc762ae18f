package spoa

import (
	"encoding/binary"
	"errors"

	"github.com/negasus/haproxy-spoe-go/frame"
	"github.com/negasus/haproxy-spoe-go/typeddata"
	"github.com/negasus/haproxy-spoe-go/varint"
)

// Sizes of a frame's body: what follows the four bytes that say its length.
const (
	prefixLen  = 4
	minBody    = 7     // type, flags, and one byte each for the two ids
	maxBody    = 16388 // HAProxy's largest max-frame-size is 16380
	maxMessage = 32    // messages in a NOTIFY; a right configuration sends one
	maxItems   = 256   // arguments, or keys of a HELLO
)

// flagFin is set on a frame that is not a fragment of a longer one.
const flagFin = 1

var (
	errFragment  = errors.New("frame is a fragment, which was not offered")
	errType      = errors.New("frame is not of a type that HAProxy sends")
	errMalformed = errors.New("frame is malformed")
)

// header is what the connection must know of a frame.
type header struct {
	kind        frame.Type
	engine      string // engine-id of a HELLO
	healthcheck bool   // a HELLO that only asks whether the agent is there
}

// inspect checks the body of a frame so thoroughly that the library decodes
// it without a panic, and returns what is of interest in it. It accepts what
// the SPOP specification (HAProxy's doc/SPOE.txt, section 3.2) lets HAProxy send.
func inspect(body []byte) (header, error) {
	h := header{kind: frame.Type(body[0])}
	switch h.kind {
	case frame.TypeHaproxyHello, frame.TypeHaproxyDisconnect, frame.TypeNotify:
	case frame.TypeUnset:
		return h, errFragment
	default:
		return h, errType
	}
	if binary.BigEndian.Uint32(body[1:5])&flagFin == 0 {
		return h, errFragment
	}
	r := reader{rest: body[5:], items: maxItems}
	r.varint() // stream id
	r.varint() // frame id
	if h.kind == frame.TypeNotify {
		r.messages()
	} else {
		r.keys(&h)
	}
	if r.bad {
		return h, errMalformed
	}
	return h, nil
}

// reader takes a frame's payload apart. After the first thing that does not
// fit it is bad, and empty.
type reader struct {
	rest  []byte
	items int // key-value pairs that may still come
	bad   bool
}

func (r *reader) fail() {
	r.rest, r.bad = nil, true
}

// bytes takes n bytes.
func (r *reader) bytes(n uint64) []byte {
	if n > uint64(len(r.rest)) {
		r.fail()
		return nil
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

// varint takes one integer, decoded as the library will decode it.
func (r *reader) varint() uint64 {
	v, n := varint.Uvarint(r.rest)
	if n < 1 {
		r.fail()
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

// messages takes the messages of a NOTIFY, of which there may be none.
func (r *reader) messages() {
	for n := 0; len(r.rest) > 0; n++ {
		if n == maxMessage {
			r.fail()
			return
		}
		r.bytes(r.varint()) // name
		count := r.bytes(1)
		if r.bad {
			return
		}
		for range count[0] {
			r.item()
		}
	}
}

// keys takes the key-value pairs of a HELLO or DISCONNECT. The library asserts
// the types of three of them.
func (r *reader) keys(h *header) {
	for len(r.rest) > 0 {
		name, kind, flag, value := r.item()
		switch string(name) {
		case "healthcheck":
			h.healthcheck = flag
			if kind != typeddata.TypeBoolean {
				r.fail()
			}
		case "max-frame-size":
			if kind != typeddata.TypeUInt32 {
				r.fail()
			}
		case "engine-id":
			h.engine = string(value)
			if kind != typeddata.TypeString {
				r.fail()
			}
		}
	}
}

// item takes a name and a typed value: its type, the flag of a boolean, the
// bytes of a string.
func (r *reader) item() (name []byte, kind byte, flag bool, value []byte) {
	if r.items == 0 {
		r.fail()
	}
	r.items--
	name = r.bytes(r.varint())
	head := r.bytes(1)
	if r.bad {
		return nil, 0, false, nil
	}
	kind, flag = head[0]&0x0F, head[0]&0x10 != 0
	switch kind {
	case typeddata.TypeNull, typeddata.TypeBoolean:
	case typeddata.TypeInt32, typeddata.TypeUInt32, typeddata.TypeInt64, typeddata.TypeUInt64:
		r.varint()
	case typeddata.TypeIPv4:
		r.bytes(4)
	case typeddata.TypeIPv6:
		r.bytes(16)
	case typeddata.TypeString, typeddata.TypeBinary:
		value = r.bytes(r.varint())
	default:
		r.fail()
	}
	return name, kind, flag, value
}
