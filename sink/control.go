package sink

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/ordering"
)

// State is what readers of critical keys obey.
type State string

// The states. An absent hash, or a state that a reader does not know, is to be
// read as StateGap.
const (
	StateOK         State = "ok"          // fresh to fresh_as_of
	StateCatchingUp State = "catching_up" // nothing is lost, but much is behind
	StateGap        State = "gap"         // changes may be missing; the purge is under way
)

// Source identifies the history that positions belong to.
type Source struct {
	SystemID string
	Timeline uint32
	Epoch    string // whatever else tells two histories apart; stored and given back as it is
}

// Control is the control hash as it was found.
type Control struct {
	Found      bool
	Generation uint32 // rises with each StartGeneration
	Source     Source
	Region     string
	Applied    lsn.LSN   // commit LSN: no transaction at or below it is missing
	End        lsn.LSN   // end LSN of that transaction
	CommitTime time.Time // its commit time
	XID        uint32    // its id; 0 where the slot need not send it again
	FreshAsOf  time.Time // nothing that was visible on the source then is missing
	Sent       lsn.LSN   // commit LSN: nothing above it has been applied
	Settled    lsn.LSN   // end LSN: nothing that ended at or below is missing, held, or being purged; see settle.go
	State      State
	Reason     string
	StateSince time.Time
	Stamps     string    // revision of the stamps that hold, see PublishStamps; "" for none
	Purging    []string  // families whose purge is not done
	Updated    time.Time // the writer's clock
	// Have and HaveEnd are Applied and End of the primary that has least: replay starts there.
	Have, HaveEnd lsn.LSN
	// Unproved names a primary that may lack anything, "" when there is none: a gap.
	Unproved string
	// NodesChanged says that the primaries are not those of the last checkpoint, in
	// process or history: writes that they had acknowledged may be lost.
	NodesChanged bool
	// Damaged is what of the hash cannot be read, "" when all can. Nothing else of it counts then.
	Damaged string

	tookBack bool              // a primary's data went back, and it is the same process all the same
	held     map[string]string // mark by class, see held.go; never changed in place
	writer   string
	nodes    string // fingerprints of the primaries that have all up to Applied
	revision uint64 // of the state
}

// Checkpoint says that no transaction at or below a position is missing.
type Checkpoint struct {
	ordering.Position
	FreshAsOf time.Time // see Control; zero: the stored one stands
	SystemID  string    // when set, must be that of the current generation
}

// What is above was not written by a daemon, and counting on from there would end. A generation
// begins at the clock.
const (
	maxRevision   = 1 << 48
	maxGeneration = 10 * 365 * 24 * time.Hour
)

// parseControl reads the hash. What cannot be read is not guessed at: a wrong position would
// be a lost change.
func parseControl(m map[string]string) Control {
	if m["generation"] == "" {
		return Control{}
	}
	c := Control{
		Found:  true,
		Source: Source{SystemID: m["system_id"], Epoch: m["epoch"]},
		Region: m["region"], State: State(m["state"]), Reason: m["reason"], writer: m["writer"], nodes: m["nodes"],
		Stamps: m["stamps"], Purging: strings.Fields(m["purging"]),
	}
	var errs []error
	number := func(name string, digits int) uint64 {
		v := m[name]
		n, err := strconv.ParseUint(v, 16, 4*digits)
		if err != nil || len(v) != digits {
			errs = append(errs, fmt.Errorf("field %s is %q, want %d hexadecimal digits", name, v, digits))
		}
		return n
	}
	c.Generation = uint32(number("generation", 8))
	if bound := time.Now().Add(maxGeneration).Unix(); int64(c.Generation) > bound {
		c.Generation = 0
		errs = append(errs, fmt.Errorf("field generation is %q, which no daemon has begun", m["generation"]))
	}
	c.Source.Timeline = uint32(number("timeline", 8))
	c.Applied, c.End, c.Sent = lsn.LSN(number("applied", 16)), lsn.LSN(number("end", 16)), lsn.LSN(number("sent", 16))
	if m["settled"] != "" { // a hash of before there was this field says nothing
		c.Settled = lsn.LSN(number("settled", 16))
	}
	c.CommitTime = timeFromMicros(number("commit_time", 16))
	c.FreshAsOf = timeFromMicros(number("fresh_as_of", 16))
	c.StateSince = timeFromMicros(number("state_since", 16))
	c.Updated = timeFromMicros(number("updated", 16))
	c.revision = number("state_revision", 16)
	if c.revision > maxRevision {
		errs = append(errs, fmt.Errorf("field state_revision is %q, which nobody counts to", m["state_revision"]))
	}
	c.XID = parseTxn(m["txn"], c.Applied)
	for name, mark := range m {
		class, ok := strings.CutPrefix(name, heldField)
		if !ok {
			continue
		}
		if _, err := parseMark(class, mark); err != nil {
			errs = append(errs, err)
		}
		if c.held == nil {
			c.held = map[string]string{}
		}
		c.held[class] = mark
	}
	for _, known := range []State{StateOK, StateCatchingUp, StateGap, ""} {
		if c.State == known {
			if len(errs) > 0 {
				return Control{Generation: c.Generation, Damaged: strings.ReplaceAll(errors.Join(errs...).Error(), "\n", "; ")}
			}
			return c
		}
	}
	return Control{Generation: c.Generation, Damaged: "field state is none that is known"}
}

// txnField identifies the transaction at a position, "" where it is not known. It names the
// position, so that it does not speak for one that a writer without this field stored later.
func txnField(applied lsn.LSN, xid uint32) string {
	if xid == 0 {
		return ""
	}
	return applied.Hex() + " " + hex32(xid)
}

func parseTxn(field string, applied lsn.LSN) uint32 {
	text, ok := strings.CutPrefix(field, applied.Hex()+" ")
	xid, err := strconv.ParseUint(text, 16, 32)
	if !ok || err != nil {
		return 0
	}
	return uint32(xid)
}

func (r *Redis) load(ctx context.Context, be *backend) (Control, error) {
	return be.loadControl(ctx, r.controlKey)
}

func (b *backend) loadControl(ctx context.Context, key string) (Control, error) {
	m, err := b.readControl(ctx, key)
	return parseControl(m), err
}

func (b *backend) readControl(ctx context.Context, key string) (map[string]string, error) {
	c, err := b.nodeFor(ctx, key)
	if err != nil {
		return nil, err
	}
	m, err := c.HGetAll(ctx, key).Result()
	if replyCode(err) == "WRONGTYPE" {
		return nil, nil // installing a generation replaces it
	}
	if err != nil {
		if b.guard != nil {
			b.noteReply(b.addr(c), err)
		}
		return nil, wrap("", b.addr(c), "", err)
	}
	return m, nil
}

// callControl runs a script on the control hash and turns its answer into an
// error. NOSCRIPT and an absent hash are mended once, by loading and restoring.
func (r *Redis) callControl(ctx context.Context, be *backend, command func(replID string) *redis.Cmd) error {
	return r.callScript(ctx, be, command, r.controlAnswer)
}

// callScript is callControl for a script with an answer of its own.
func (r *Redis) callScript(ctx context.Context, be *backend, command func(replID string) *redis.Cmd, answer func(*backend, string, *redis.Cmd) error) error {
	for attempt := 1; ; attempt++ {
		c, err := be.nodeFor(ctx, r.controlKey)
		if err != nil {
			return err
		}
		if err := be.guard.node(be.addr(c)); err != nil {
			return err
		}
		cmd := command(be.guard.replID(be.addr(c)))
		_ = c.Process(ctx, cmd) // the error stands on the command
		err = answer(be, be.addr(c), cmd)
		if err == nil || attempt == attempts {
			return err
		}
		if err := r.mend(ctx, be, c, err); err != nil {
			return err
		}
	}
}

// controlAnswer reads the reply of a control script.
func (r *Redis) controlAnswer(be *backend, addr string, cmd *redis.Cmd) error {
	answer, err := cmd.Text()
	if err != nil {
		be.noteReply(addr, err)
		return wrap("", addr, "", err)
	}
	return r.controlStatus(be, addr, answer)
}

func (r *Redis) controlStatus(be *backend, addr, answer string) (err error) {
	switch answer {
	case "ok":
		return nil
	case "absent":
		return errAbsent
	case "busy":
		return errBusy
	case "nodes":
		return errOtherNodes
	case "generation":
		err = fmt.Errorf("%w: it has another generation", ErrSuperseded)
	case "revision":
		err = fmt.Errorf("%w: a later state, or other stamps, are published", ErrSuperseded)
	case "back":
		err = fmt.Errorf("%w: %s: its data went back to before what it has acknowledged (SWAPDB, a restored copy)", ErrNodeChanged, addr)
		be.guard.fail(err)
	case "node":
		err = fmt.Errorf("%w: %s: another history (replication id)", ErrNodeChanged, addr)
		be.guard.fail(err)
	default:
		err = errors.New("unknown answer of a script")
	}
	return wrap("", addr, "", err)
}

// mend removes the cause of an error that is not one of Redis's health. nil means
// that sending again makes sense; else it returns the error to report.
func (r *Redis) mend(ctx context.Context, be *backend, c *redis.Client, err error) error {
	switch {
	case errors.Is(err, errAbsent):
		r.metrics.restored.Inc()
		return r.restore(ctx, be, c)
	case errors.Is(err, ErrSuperseded):
		ours, reclaimErr := r.reclaim(ctx, be)
		if ours || reclaimErr != nil {
			return reclaimErr
		}
	case replyCode(err) == "NOSCRIPT":
		r.metrics.reloaded.Inc()
		return r.loadScripts(ctx, c)
	}
	return err
}

func (r *Redis) loadScripts(ctx context.Context, c *redis.Client) error {
	return send(ctx, c, r.scripts.loads(ctx)...)
}

// restore writes the control hash again after it was flushed or evicted. That
// the node is the same was checked: what the process knows of it is true.
func (r *Redis) restore(ctx context.Context, be *backend, c *redis.Client) error {
	return r.install(ctx, be, c, "")
}

// install writes a whole control hash, in the place of one of this generation only if that is
// what it is told to replace: "=" and its state_revision.
func (r *Redis) install(ctx context.Context, be *backend, c *redis.Client, replaces string) error {
	for attempt := 1; ; attempt++ {
		cmd := r.installCommand(ctx, be.guard.replID(be.addr(c)), replaces)
		_ = c.Process(ctx, cmd)
		err := r.controlAnswer(be, be.addr(c), cmd)
		if err == nil || attempt == attempts || replyCode(err) != "NOSCRIPT" {
			return err
		}
		if err := r.loadScripts(ctx, c); err != nil {
			return err
		}
	}
}

func (r *Redis) installCommand(ctx context.Context, replID, replaces string) *redis.Cmd {
	r.shadowMu.Lock()
	defer r.shadowMu.Unlock()
	r.shadow.writer = r.writer
	c := r.shadow
	c.Updated, c.Sent = r.now(), max(c.Sent, r.asked) // which may have been applied
	return r.scripts.install.command(ctx, []any{r.controlKey}, append([]any{hex32(c.Generation), replID, r.writer, replaces}, c.fields()...))
}

func hex32(v uint32) string { return fmt.Sprintf("%08x", v) }
func hex64(v uint64) string { return lsn.LSN(v).Hex() }

// hexTime writes microseconds since 1970; the zero time, and all before 1970,
// are 0.
func hexTime(t time.Time) string {
	return hex64(uint64(max(0, micros(t))))
}

func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func timeFromMicros(v uint64) time.Time {
	if v == 0 {
		return time.Time{}
	}
	return time.UnixMicro(int64(v)).UTC()
}
