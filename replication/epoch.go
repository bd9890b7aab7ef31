package replication

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// Epoch names one uninterrupted life of a source. Within it, what was visible
// stays committed. Across a crash that need not hold: with synchronous_commit =
// off a commit that readers have seen can be lost without any event, and its xid
// and LSN are then used again by others.
type Epoch struct {
	SystemID        string
	Timeline        uint32
	PostmasterStart time.Time
	// CheckpointerStart changes when a crash of one backend made the server
	// restart all of them, which leaves PostmasterStart as it was. Zero when the
	// role may not see it (it needs pg_read_all_stats).
	CheckpointerStart time.Time
	ServerVersion     int
}

// ReadEpoch asks the source for its epoch. It fails on a standby: a timeline can
// only be told where WAL is written.
func ReadEpoch(ctx context.Context, conn *pgx.Conn) (Epoch, error) {
	const op = "read the source's epoch"
	var e Epoch
	var inRecovery bool
	var walFile *string
	var checkpointer *time.Time
	// The timeline stands in the name of the file that is written now. The
	// control file's is that of the last checkpoint, which after a promotion may
	// still be the old one.
	err := conn.QueryRow(ctx, `
		SELECT (SELECT system_identifier::text FROM pg_control_system()),
		       pg_is_in_recovery(),
		       CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_walfile_name(pg_current_wal_lsn()) END,
		       pg_postmaster_start_time(),
		       (SELECT backend_start FROM pg_stat_activity WHERE backend_type = 'checkpointer' LIMIT 1),
		       current_setting('server_version_num')::int`).
		Scan(&e.SystemID, &inRecovery, &walFile, &e.PostmasterStart, &checkpointer, &e.ServerVersion)
	if err != nil {
		return Epoch{}, serverError(op, err, "GRANT EXECUTE ON FUNCTION pg_control_system(), pg_walfile_name(pg_lsn) TO <the role>;")
	}
	if inRecovery || walFile == nil {
		return Epoch{}, Server{Version: e.ServerVersion, InRecovery: true}.Check()
	}
	if checkpointer != nil {
		e.CheckpointerStart = checkpointer.UTC()
	}
	e.PostmasterStart = e.PostmasterStart.UTC()
	if len(*walFile) < 8 {
		return Epoch{}, fmt.Errorf("%s: WAL file name %q is too short", op, *walFile)
	}
	timeline, err := strconv.ParseUint((*walFile)[:8], 16, 32)
	if err != nil {
		return Epoch{}, fmt.Errorf("%s: WAL file name %q: %w", op, *walFile, err)
	}
	e.Timeline = uint32(timeline)
	return e, nil
}

// Encode is the form in which an epoch is stored.
func (e Epoch) Encode() string {
	b, err := json.Marshal(e)
	if err != nil {
		return "" // cannot happen for this type; ParseEpoch refuses it
	}
	return string(b)
}

// ParseEpoch reads what Encode made.
func ParseEpoch(text string) (Epoch, error) {
	var e Epoch
	if err := json.Unmarshal([]byte(text), &e); err != nil {
		return Epoch{}, fmt.Errorf("read the stored epoch: %w", err)
	}
	return e, nil
}

// Continuity is how two epochs of what should be one source relate.
type Continuity uint8

// From best to worst. Only Continuous proves that nothing was lost; Unproved is
// a source whose restarts this role cannot all see.
const (
	Continuous Continuity = iota
	Unproved
	Restarted       // the server or all its backends restarted: commits made with synchronous_commit = off may be gone
	TimelineChanged // promoted or restored: positions of the two timelines do not compare
	OtherCluster
)

func (c Continuity) String() string {
	switch c {
	case Continuous:
		return "continuous"
	case Unproved:
		return "unproved"
	case Restarted:
		return "restarted"
	case TimelineChanged:
		return "timeline changed"
	case OtherCluster:
		return "other cluster"
	}
	return "Continuity(" + strconv.Itoa(int(c)) + ")"
}

// Since compares e with an epoch that was read earlier, and says what differs.
func (e Epoch) Since(earlier Epoch) (Continuity, string) {
	switch {
	case e.SystemID != earlier.SystemID:
		return OtherCluster, fmt.Sprintf("system id %s, was %s", e.SystemID, earlier.SystemID)
	case e.Timeline != earlier.Timeline:
		return TimelineChanged, fmt.Sprintf("timeline %d, was %d", e.Timeline, earlier.Timeline)
	case !e.PostmasterStart.Equal(earlier.PostmasterStart):
		return Restarted, fmt.Sprintf("server started %s, was %s", e.PostmasterStart.Format(time.RFC3339Nano), earlier.PostmasterStart.Format(time.RFC3339Nano))
	case e.CheckpointerStart.IsZero() || earlier.CheckpointerStart.IsZero():
		return Unproved, "the role cannot see the checkpointer's start (grant pg_read_all_stats)"
	case !e.CheckpointerStart.Equal(earlier.CheckpointerStart):
		return Restarted, fmt.Sprintf("all backends restarted %s, were started %s: one of them crashed",
			e.CheckpointerStart.Format(time.RFC3339Nano), earlier.CheckpointerStart.Format(time.RFC3339Nano))
	}
	return Continuous, ""
}

func (e Epoch) String() string {
	return fmt.Sprintf("system %s timeline %d started %s", e.SystemID, e.Timeline, e.PostmasterStart.Format(time.RFC3339))
}
