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
}

// Txn is what a batch knows of a transaction.
type Txn struct {
	XID        uint32 // without its epoch, as the log carries it
	CommitLSN  lsn.LSN
	CommitTime time.Time
}
