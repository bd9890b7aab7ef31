// Package await waits until everything up to a position of the source's log is applied to
// Redis, with what classes hold back: for the command wait, and for whoever has the servers
// and no daemon of its own. It asks both servers and changes nothing, but for a message of
// a few bytes in the source's log.
//
// It decides nothing itself: the daemon publishes the position (sink/settle.go), and
// sink.Settling says whether it is valid for the Redis that answers now. What is added here
// is that the position belongs to the history of the source that answers now, and that the
// daemon follows what the file maps (files.go): of what it does not map, its position says nothing.
package await

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
	"github.com/cdc-invalidator/cdc-invalidator/sink"
)

const (
	interval       = 20 * time.Millisecond // between two looks at Redis, at first
	longInterval   = 250 * time.Millisecond
	explainTimeout = 3 * time.Second // for what is asked of the source once the time is over
)

// Options say what to wait for.
type Options struct {
	File *mapping.File
	// At is a position of the source's log, 0 for its present end: everything that is
	// visible on the source when Wait is called.
	At lsn.LSN
	// Timeout is for how long to wait; 0 for as long as the context allows.
	Timeout time.Duration
}

// Result is how far it is.
type Result struct {
	Settled bool    // everything up to Needed is applied
	Needed  lsn.LSN // the position that was waited for
	At      lsn.LSN // everything that ended at or below it is applied
	Applied lsn.LSN // the same, but for what is held back
	State   sink.State
	Reason  string
	Held    []sink.HeldNow
	Waited  time.Duration
	// Missing is what it waited for when the time was over.
	Missing []string
}

// Wait returns once it is so, or with what is missing once the time is over. The error is
// for what no waiting changes: a server that is not there at the start, a faulty setting.
func Wait(ctx context.Context, o Options) (r Result, err error) {
	began := time.Now()
	r.Needed = o.At
	plan, err := mapping.Compile(o.File)
	if err != nil {
		return r, err
	}
	maps := plan.Maps()
	epoch, slotFound, err := ask(ctx, o, &r)
	if err != nil {
		return r, err
	}
	w, err := sink.OpenWatch(o.File.Redis, o.File.Source.Slot.Name)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	waiting := ctx
	if o.Timeout > 0 {
		var cancel context.CancelFunc
		waiting, cancel = context.WithDeadline(ctx, began.Add(o.Timeout))
		defer cancel()
	}
	pause := interval
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		found, lookErr := w.Look(ctx)
		r.Waited = time.Since(began)
		if lookErr == nil {
			r.take(found, epoch, maps)
		}
		if e := (*sink.Error)(nil); errors.As(lookErr, &e) && e.Kind == sink.KindConfiguration {
			return r, lookErr
		}
		var beyond error
		if r.Settled {
			if beyond = believable(ctx, o, found); beyond == nil {
				if !slotFound {
					err = checkSlot(ctx, o.File) // it was made since
				}
				return r, err
			}
			r.Settled = false
		}
		timer.Reset(pause)
		select {
		case <-timer.C:
			pause = min(pause+pause/8, longInterval)
		case <-waiting.Done():
			if ctx.Err() != nil {
				return r, ctx.Err()
			}
			r.Missing = missing(found, lookErr, epoch, r.Needed, o.File.Source.Slot.Name, maps)
			if beyond != nil {
				r.Missing = append(r.Missing, beyond.Error())
			}
			if lookErr == nil && found.End < r.Needed {
				r.Missing = append(r.Missing, notStreaming(ctx, o.File)...)
			}
			return r, nil
		}
	}
}

// believable asks the source whether its log goes as far as the control hash says: a field of it
// may have been spoilt, and the daemon be away that would write it again.
func believable(ctx context.Context, o Options, found sink.Settling) error {
	ctx, cancel := context.WithTimeout(ctx, explainTimeout)
	defer cancel()
	conn, err := replication.ConnectControl(ctx, o.File.Source.URL.Reveal(), "wait")
	if err != nil {
		return err
	}
	defer replication.CloseControl(ctx, conn)
	end, err := replication.LogEnd(ctx, conn)
	if err == nil && end < found.End {
		err = fmt.Errorf("the control hash was damaged: it says that everything up to %s is applied, and the source's log ends at %s", found.End, end)
	}
	return err
}

// ask asks the source for what it is, and for the position where that is needed. Without
// heartbeats nothing else may come through the slot that a given position lies below.
func ask(ctx context.Context, o Options, r *Result) (epoch replication.Epoch, slotFound bool, err error) {
	conn, err := replication.ConnectControl(ctx, o.File.Source.URL.Reveal(), "wait")
	if err != nil {
		return epoch, false, err
	}
	defer replication.CloseControl(ctx, conn)
	if slotFound, err = replication.CheckSlotDatabase(ctx, conn, o.File.Source.Slot.Name); err != nil {
		return epoch, slotFound, err
	}
	if epoch, err = replication.ReadEpoch(ctx, conn); err != nil {
		return epoch, slotFound, err
	}
	if o.At != 0 && o.File.Source.Heartbeat > 0 {
		return epoch, slotFound, nil
	}
	at, err := replication.Nudge(ctx, conn)
	if o.At == 0 {
		r.Needed = at
	}
	return epoch, slotFound, err
}

// take notes what was found.
func (r *Result) take(found sink.Settling, epoch replication.Epoch, maps map[string]string) {
	r.At, r.Applied, r.State, r.Reason, r.Held = found.Control.Settled, found.End, found.State, found.Reason, found.Held
	_, same := history(found, epoch)
	r.Settled = same && found.Settled(r.Needed) && notFollowed(found, maps) == nil
}

// history says whether the daemon's positions are of the life of the source that answers
// now, and what differs. Since a restart the daemon has to have been there: what comes back
// from a copy has positions that were used before.
func history(found sink.Settling, epoch replication.Epoch) (difference string, same bool) {
	followed, err := replication.ParseEpoch(found.Source.Epoch)
	if err != nil {
		return "the control hash does not say which life of the source it is of", false
	}
	c, why := epoch.Since(followed)
	return why, c == replication.Continuous || c == replication.Unproved
}

// missing says what keeps a position from being settled.
func missing(found sink.Settling, err error, epoch replication.Epoch, needed lsn.LSN, slot string, maps map[string]string) []string {
	if err != nil {
		return []string{"Redis cannot be asked: " + err.Error()}
	}
	if !found.Found || found.Generation == 0 {
		return []string{fmt.Sprintf("Redis has no checkpoint of slot %s: no daemon has attached to it with this redis.url and redis.prefix", slot)}
	}
	var out []string
	if why, same := history(found, epoch); !same {
		out = append(out, "the daemon has not attached to the source as it is now: "+why)
	}
	out = append(out, notFollowed(found, maps)...)
	if found.NodesChanged {
		out = append(out, "Redis has other primaries than the daemon has written to: what they may have lost is applied again first")
	}
	if len(found.Purging) > 0 {
		out = append(out, "what was cached before is still being removed of the families "+strings.Join(found.Purging, ", "))
	}
	if found.State != sink.StateOK {
		text := "the state is " + string(found.State)
		if found.Reason != "" {
			text += ": " + found.Reason
		}
		out = append(out, text)
	}
	switch {
	case found.End < needed:
		out = append(out, fmt.Sprintf("applied is everything up to %s, needed %s", found.End, needed))
	case found.Control.Settled < needed && len(found.Purging) == 0:
		for _, h := range found.Held {
			out = append(out, fmt.Sprintf("class %s holds back %d invalidations, the last one until %s", h.Class, h.Waiting, h.Until.Format("2006-01-02T15:04:05.000Z")))
		}
		if len(found.Held) == 0 {
			out = append(out, "the daemon has to look at the source's catalogs, or to finish a purge, first: see its conditions (cdc-invalidator status)")
		}
	}
	return out
}

// notStreaming says whether anybody streams from the slot.
func notStreaming(ctx context.Context, file *mapping.File) []string {
	ctx, cancel := context.WithTimeout(ctx, explainTimeout)
	defer cancel()
	conn, err := replication.ConnectControl(ctx, file.Source.URL.Reveal(), "wait")
	if err != nil {
		return []string{"the source cannot be asked who streams: " + err.Error()}
	}
	defer replication.CloseControl(ctx, conn)
	name := file.Source.Slot.Name
	slot, found, err := replication.ReadSlot(ctx, conn, name)
	switch {
	case err != nil:
		return []string{err.Error()}
	case !found:
		return []string{"there is no slot " + name + ": no daemon is streaming"}
	case !slot.Active:
		return []string{"slot " + name + " is not active: no daemon is streaming"}
	}
	return nil
}
