package replication

import (
	"context"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/internal/failpoint"
)

// shortLook is what watcher_short.sql has found.
type shortLook struct {
	at      time.Time // nothing that became visible later is in it; by the source's clock
	xmin    uint64    // all transactions below it have ended
	visible bool      // the DDL that was announced is
	trigger string    // differs after every change of an event trigger or of its function
	below   string    // differs after every change of what stood below mapped tables, as far as it was asked for
}

// unknownBelow is no digest.
const unknownBelow = "?"

func readShort(ctx context.Context, conn *pgx.Conn, below []uint32, announced []int64) (shortLook, error) {
	const op = "look at the catalogs"
	var look shortLook
	var xmin string
	var digest []byte
	err := conn.QueryRow(ctx, shortSQL, below, DDLFunction, DDLSchema, announced).Scan(&look.at, &xmin, &look.visible, &look.trigger, &digest)
	if err != nil {
		return look, serverError(op, err, "")
	}
	look.below = string(digest)
	look.xmin, err = strconv.ParseUint(xmin, 10, 64)
	return look, serverError(op, err, "")
}

// lookOnce takes a short look, and a wide one where that is called for.
func (w *CatalogWatcher) lookOnce(ctx context.Context, conn *pgx.Conn) error {
	failpoint.Hold(ctx, failpoint.CatalogLook)
	w.mu.Lock()
	asked, ddl := w.asked, w.ddl
	select {
	case <-w.look: // asked for before this look, which answers it
	default:
	}
	w.mu.Unlock()
	began := time.Now()
	short, err := readShort(ctx, conn, w.below, ddl)
	if err != nil {
		return err
	}
	changed := short.trigger != w.trigger
	if changed {
		if err := w.readTrigger(ctx, conn); err != nil {
			return err
		}
	}
	w.mu.Lock()
	pending := asked > w.answered
	wide := changed || !w.announced || w.unsettled() || short.below != w.belowNow || began.Sub(w.lastWide) >= min(max(wideInterval, quietShare*w.took), quietMost)
	if !short.visible {
		asked = w.answered
	} else if pending && !wide {
		wide = began.Sub(w.lastWide) >= askedShare*w.took
	}
	wide = wide || len(w.wait) > 0
	if !wide {
		if !pending {
			w.seen = moment{short.at, began}
		}
		w.lastLook, w.lastErr = began, nil
	}
	w.mu.Unlock()
	w.o.Metrics.catalogLooks.WithLabelValues(lookKind(wide)).Inc()
	if !wide {
		return nil
	}
	return w.lookWide(ctx, conn, short, asked, len(ddl), began)
}

func lookKind(wide bool) string {
	if wide {
		return "wide"
	}
	return "short"
}

// readTrigger learns what the event trigger announces after it has changed. Should it change
// meanwhile, the next look finds it changed again.
func (w *CatalogWatcher) readTrigger(ctx context.Context, conn *pgx.Conn) error {
	state, err := readDDLTriggers(ctx, conn)
	if err != nil {
		return err
	}
	w.mu.Lock()
	before := w.announced
	w.announced = state.Complete()
	now := w.announced
	w.mu.Unlock()
	switch first := !w.looked; {
	case before && !now:
		w.o.Logger.Warn("the event trigger does not announce all DDL any more: the catalogs are compared as often as the strictest budget needs", "fix", "cdc-invalidator apply")
	case now && !before && !first:
		w.o.Logger.Info("the event trigger announces all DDL again")
	}
	return nil
}
