package decoder

import (
	"fmt"
	"slices"
	"unicode/utf8"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
)

// Decoder decodes the messages of one replication connection. It keeps what
// the protocol keeps: the relations described so far, and whether a transaction
// is open. A new connection needs a new Decoder, since the server describes
// every relation afresh. It is not safe for concurrent use.
type Decoder struct {
	text      Encoding
	relations map[uint32]*Relation
	last      *Relation // of the last change: rows of one table come in runs
	inTx      bool
	begun     lsn.LSN
	msg       Message
	old, new  []Value // backing of msg.Change, reused
}

// New returns a Decoder for a connection on which START_REPLICATION just
// succeeded, of a server whose text is UTF-8.
func New() *Decoder { return NewFor(nil) }

// NewFor is New for a server with an encoding of its own; nil is UTF-8.
func NewFor(text Encoding) *Decoder {
	return &Decoder{text: text, relations: make(map[uint32]*Relation)}
}

// Encoding converts what a server sends in an encoding of its own into UTF-8.
type Encoding interface {
	// UTF8 is false where src has no form in UTF-8. It may return src itself.
	UTF8(src []byte) (text []byte, ok bool)
	// Lossy has U+FFFD in the place of what cannot be converted.
	Lossy(src []byte) []byte
}

// name is a name of the catalog. One that cannot be converted stays as it is: it is
// nobody's that a file could mention.
func (d *Decoder) name(src []byte) string { return string(d.converted(src)) }

func (d *Decoder) converted(src []byte) []byte {
	if d.text != nil {
		if text, ok := d.text.UTF8(src); ok {
			return text
		}
	}
	return src
}

// Relations calls yield for each relation described so far on this connection.
func (d *Decoder) Relations(yield func(*Relation) bool) {
	for _, rel := range d.relations {
		if !yield(rel) {
			return
		}
	}
}

// Decode decodes one pgoutput message: the payload of one XLogData. What it
// returns, relations excepted, aliases data and is overwritten by the next call.
func (d *Decoder) Decode(data []byte) (*Message, error) {
	if len(data) == 0 {
		return nil, &FormatError{Message: "empty", Problem: "no message type"}
	}
	m := &d.msg
	m.Kind = KindNone
	r := reader{data: data, pos: 1}
	switch data[0] {
	case 'I', 'U', 'D':
		r.name = "row"
		return m, d.change(&r, m, Action(data[0]))
	case 'B':
		r.name = "Begin"
		return m, d.begin(&r, m)
	case 'C':
		r.name = "Commit"
		return m, d.commit(&r, m)
	case 'R':
		r.name = "Relation"
		return m, d.relation(&r, m)
	case 'T':
		r.name = "Truncate"
		return m, d.truncate(&r, m)
	case 'M':
		r.name = "Message"
		return m, d.logical(&r, m)
	case 'Y':
		r.name = "Type"
		r.uint32()
		r.cstring()
		r.cstring()
		return m, r.end()
	case 'O':
		r.name = "Origin"
		r.lsn()
		r.cstring()
		return m, r.end()
	case 'S', 'E', 'c', 'A', 'b', 'P', 'K', 'r', 'p':
		return nil, &FormatError{Message: fmt.Sprintf("%q", data[0]), Problem: "streamed and two-phase transactions were not asked for; the slot must have two_phase = false"}
	}
	return nil, &FormatError{Message: fmt.Sprintf("%q", data[0]), Problem: "unknown message type"}
}

func (d *Decoder) begin(r *reader, m *Message) error {
	m.Begin = Begin{CommitLSN: r.lsn(), CommitTime: r.time(), XID: r.uint32()}
	if d.inTx {
		r.fail("a transaction is already open")
	}
	if err := r.end(); err != nil {
		return err
	}
	d.inTx, d.begun = true, m.Begin.CommitLSN
	m.Kind = KindBegin
	return nil
}

func (d *Decoder) commit(r *reader, m *Message) error {
	if flags := r.byte(); flags != 0 {
		r.fail(fmt.Sprintf("unknown flags %#x", flags))
	}
	m.Commit = Commit{CommitLSN: r.lsn(), EndLSN: r.lsn(), CommitTime: r.time()}
	switch {
	case r.err != nil:
	case !d.inTx:
		r.fail("no transaction is open")
	case m.Commit.CommitLSN != d.begun:
		r.fail(fmt.Sprintf("commits %s, but %s was begun", m.Commit.CommitLSN, d.begun))
	case m.Commit.EndLSN <= m.Commit.CommitLSN:
		r.fail(fmt.Sprintf("ends at %s, not after its commit record at %s", m.Commit.EndLSN, m.Commit.CommitLSN))
	}
	if err := r.end(); err != nil {
		return err
	}
	d.inTx = false
	m.Kind = KindCommit
	return nil
}

func (d *Decoder) relation(r *reader, m *Message) error {
	rel := &Relation{ID: r.uint32(), Encoding: d.text}
	rel.Namespace = d.name(r.cstring())
	if rel.Namespace == "" {
		rel.Namespace = "pg_catalog"
	}
	rel.Name = d.name(r.cstring())
	rel.ReplicaIdentity = ReplicaIdentity(r.byte())
	switch rel.ReplicaIdentity {
	case IdentityDefault, IdentityNothing, IdentityFull, IdentityIndex:
	default:
		r.fail(fmt.Sprintf("unknown replica identity %q", byte(rel.ReplicaIdentity)))
	}
	n := int(r.uint16())
	// A column takes at least ten bytes: a count that the message cannot hold
	// must not decide how much is allocated.
	rel.Columns = make([]Column, 0, min(n, len(r.data)/10))
	for i := 0; i < n && r.err == nil; i++ {
		flags := r.byte()
		rel.Columns = append(rel.Columns, Column{
			Key:     flags&1 != 0,
			Name:    d.name(r.cstring()),
			TypeOID: r.uint32(),
			TypeMod: int32(r.uint32()),
		})
	}
	if err := r.end(); err != nil {
		return err
	}
	if rel.ReplicaIdentity == IdentityFull {
		for i := range rel.Columns {
			rel.Columns[i].Key = true
		}
	}
	// The server describes a relation again after every invalidation of its own
	// catalog cache, mostly unchanged: keep the pointer, so that whatever was
	// bound to it stays bound.
	if old := d.relations[rel.ID]; old != nil && old.same(rel) {
		rel = old
	}
	d.relations[rel.ID] = rel
	d.last = nil
	m.Relation = rel
	m.Kind = KindRelation
	return nil
}

func (rel *Relation) same(o *Relation) bool {
	return rel.Namespace == o.Namespace && rel.Name == o.Name &&
		rel.ReplicaIdentity == o.ReplicaIdentity && slices.Equal(rel.Columns, o.Columns)
}

func (d *Decoder) change(r *reader, m *Message, action Action) error {
	id := r.uint32()
	rel := d.last
	if rel == nil || rel.ID != id {
		if rel = d.relations[id]; rel == nil {
			r.fail(fmt.Sprintf("relation %d was never described", id))
			return r.err
		}
		d.last = rel
	}
	m.Change = Change{Relation: rel, Action: action}
	tag := r.byte()
	if tag == 'K' || tag == 'O' {
		if action == Insert {
			r.fail("an insert with an old image")
		}
		m.Change.OldKind = OldKind(tag)
		d.old = r.tuple(d.old, rel)
		m.Change.Old = d.old
		if action == Update {
			tag = r.byte()
		}
	} else if action == Delete {
		r.fail(fmt.Sprintf("a delete with tuple %q; want K or O", tag))
	}
	if action != Delete {
		if tag != 'N' {
			r.fail(fmt.Sprintf("tuple %q where the new image N belongs", tag))
		}
		d.new = r.tuple(d.new, rel)
		m.Change.New = d.new
	}
	if !d.inTx {
		r.fail("a row outside of a transaction")
	}
	if err := r.end(); err != nil {
		return err
	}
	m.Kind = KindChange
	return nil
}

// tuple parses one row image into dst. Postgres sends zero-column tuples too.
func (r *reader) tuple(dst []Value, rel *Relation) []Value {
	n := int(r.uint16())
	if r.err == nil && n != len(rel.Columns) {
		r.fail(fmt.Sprintf("%d columns, but relation %s.%s has %d", n, rel.Namespace, rel.Name, len(rel.Columns)))
	}
	dst = dst[:0]
	for i := 0; i < n && r.err == nil; i++ {
		v := Value{Kind: ValueKind(r.byte())}
		switch v.Kind {
		case Text, Binary:
			v.Data = r.bytes(r.uint32())
		case Null, Unchanged:
		default:
			if r.err == nil {
				r.fail(fmt.Sprintf("unknown column kind %q", byte(v.Kind)))
			}
		}
		dst = append(dst, v)
	}
	return dst
}

func (d *Decoder) truncate(r *reader, m *Message) error {
	n := r.uint32()
	flags := r.byte()
	m.Truncate.Relations = m.Truncate.Relations[:0]
	m.Truncate.Cascade = flags&1 != 0
	m.Truncate.RestartIdentity = flags&2 != 0
	for i := uint32(0); i < n && r.err == nil; i++ {
		id := r.uint32()
		rel := d.relations[id]
		if rel == nil && r.err == nil {
			r.fail(fmt.Sprintf("relation %d was never described", id))
		}
		m.Truncate.Relations = append(m.Truncate.Relations, rel)
	}
	if !d.inTx {
		r.fail("a TRUNCATE outside of a transaction")
	}
	if err := r.end(); err != nil {
		return err
	}
	m.Kind = KindTruncate
	return nil
}

func (d *Decoder) logical(r *reader, m *Message) error {
	flags := r.byte()
	m.Logical = Logical{Transactional: flags&1 != 0, LSN: r.lsn(), Prefix: r.cstring()}
	m.Logical.Content = r.bytes(r.uint32())
	if m.Logical.Transactional && !d.inTx {
		r.fail("a transactional message outside of a transaction")
	}
	if err := r.end(); err != nil {
		return err
	}
	if d.text != nil {
		m.Logical.Prefix = d.converted(m.Logical.Prefix)
		if content := m.Logical.Content; utf8.Valid(content) {
			m.Logical.Other = content
		}
		m.Logical.Content = d.text.Lossy(m.Logical.Content)
	}
	m.Kind = KindLogical
	return nil
}
