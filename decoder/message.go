package decoder

import (
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
)

// Kind says which of a Message's parts is set.
type Kind uint8

// The kinds of message that a consumer sees. Relation and type definitions,
// origins and the like are kept or dropped inside the decoder, except that a
// Relation is reported so that the consumer can check it against its mapping.
const (
	KindNone Kind = iota // nothing for the consumer (Type, Origin)
	KindBegin
	KindCommit
	KindRelation
	KindChange
	KindTruncate
	KindLogical
)

// Message is one decoded pgoutput message. A Decoder reuses it: everything that
// it points to, except Relations, is valid only until the next call of Decode.
type Message struct {
	Kind     Kind
	Begin    Begin
	Commit   Commit
	Relation *Relation
	Change   Change
	Truncate Truncate
	Logical  Logical
}

// Begin opens a transaction. The server sends it after the commit record was
// written, so its commit position and time are final.
type Begin struct {
	CommitLSN  lsn.LSN // position of the commit record; strictly increasing within a slot
	CommitTime time.Time
	XID        uint32 // top-level xid without its epoch
}

// Commit closes a transaction. EndLSN, not CommitLSN, is what may be confirmed:
// a transaction is sent again iff its commit LSN >= the confirmed position.
type Commit struct {
	CommitLSN  lsn.LSN
	EndLSN     lsn.LSN
	CommitTime time.Time
}

// ReplicaIdentity is pg_class.relreplident.
type ReplicaIdentity byte

// What a table logs of the old row.
const (
	IdentityDefault ReplicaIdentity = 'd'
	IdentityNothing ReplicaIdentity = 'n'
	IdentityFull    ReplicaIdentity = 'f'
	IdentityIndex   ReplicaIdentity = 'i'
)

// Relation is a table as the server described it last. It is immutable: a
// changed definition makes a new Relation, so the pointer may be kept and
// compared.
type Relation struct {
	ID              uint32
	Namespace       string // never empty; pg_catalog arrives as ""
	Name            string
	ReplicaIdentity ReplicaIdentity
	Columns         []Column
	Encoding        Encoding // converts the values of its rows; nil where they are UTF-8
}

// String is schema.name, for people.
func (rel *Relation) String() string { return rel.Namespace + "." + rel.Name }

// Column is one published column, in attribute order.
type Column struct {
	Name    string
	Key     bool // part of the replica identity; true for all under FULL
	TypeOID uint32
	TypeMod int32
}

// Action is what happened to a row.
type Action byte

// The row actions, named by their pgoutput message.
const (
	Insert Action = 'I'
	Update Action = 'U'
	Delete Action = 'D'
)

// OldKind says how much of the old row a change carries.
type OldKind byte

// OldNone: no old image (every insert; an update under identity default or
// index that left the identity alone). OldKey: the identity's columns only; the
// NULLs of the others are not values but gaps. OldFull: the whole row.
const (
	OldNone OldKind = 0
	OldKey  OldKind = 'K'
	OldFull OldKind = 'O'
)

// Change is one row's change. Old and New are in the order of
// Relation.Columns; Old is empty under OldNone, New is empty for a delete.
type Change struct {
	Relation *Relation
	Action   Action
	OldKind  OldKind
	Old, New []Value
}

// ValueKind is how a column's value arrived.
type ValueKind byte

// The kinds of value. Unchanged is a TOASTed value that the change left alone:
// it is not in the log at all (its value may stand in the old image).
const (
	Null      ValueKind = 'n'
	Unchanged ValueKind = 'u'
	Text      ValueKind = 't'
	Binary    ValueKind = 'b'
)

// Value is one column's value in a change.
type Value struct {
	Kind ValueKind
	Data []byte // Text and Binary only, in the server's encoding; aliases the buffer given to Decode
}

// Truncate lists the published relations that one TRUNCATE emptied.
type Truncate struct {
	Relations       []*Relation
	Cascade         bool
	RestartIdentity bool
}

// Logical is a message written by pg_logical_emit_message. A transactional one
// arrives inside its transaction; any other arrives at once, outside of any,
// even from a transaction that aborts later. Its text is UTF-8, with U+FFFD in the place
// of what cannot be converted.
type Logical struct {
	Transactional bool
	LSN           lsn.LSN
	Prefix        []byte
	Content       []byte
	// Other is the content as it came, where the server's encoding is not UTF-8 and it
	// could be UTF-8 all the same: messages may be sent as bytes too, and then it is.
	Other []byte
}
