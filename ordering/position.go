package ordering

import (
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
)

// Position is a transaction boundary in one cluster's log: every transaction
// that committed at or below CommitLSN has been handed on, and the log may be
// confirmed up to EndLSN. EndLSN may be far above CommitLSN on an idle database
// of a busy cluster.
type Position struct {
	Timeline   uint32
	CommitLSN  lsn.LSN
	EndLSN     lsn.LSN
	CommitTime time.Time
	// XID of the transaction at CommitLSN. With its commit time it tells that transaction
	// from one of another history at the same place. 0: the slot need not send it again.
	XID uint32
}

// Confirmable is how far the log may be confirmed for this boundary. A transaction that is
// to prove the history at the next start has to come through the slot again, so the
// boundary stays in front of it.
func (p Position) Confirmable() lsn.LSN {
	if p.XID != 0 {
		return p.CommitLSN
	}
	return p.EndLSN
}

// Txn is what a batch knows of a transaction.
type Txn struct {
	XID        uint32 // without its epoch, as the log carries it
	CommitLSN  lsn.LSN
	CommitTime time.Time
}
