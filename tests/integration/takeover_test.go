package integration

import (
	"syscall"
	"testing"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
)

// A second daemon on the same slot waits, and takes over when the first is killed.
func TestSecondDaemonTakesOver(t *testing.T) {
	t.Parallel()
	const rows = 2000
	w, _, _ := privateWorld(t, rows, nil)
	first := w.start()
	second := w.launch()
	w.eventually("the second waits", func() bool { return second.logged("in use") > 0 })
	l := w.load(rows, 3)
	l.until(300)
	if second.logged("msg=streaming") > 0 {
		t.Fatal("both follow the slot")
	}
	first.kill()
	w.eventually("the second takes over", func() bool { return second.logged("msg=streaming") > 0 })
	l.until(300)
	l.end()
	w.settle(second)
	w.wantFresh(50)
	if second.logged("gap: ") > 0 {
		t.Error("a gap, although nothing was lost")
	}
	second.stop()
}

// The first daemon is stopped for so long that the second takes over, and then goes
// on with what it had in hand. That must neither take the checkpoint back nor leave
// anything stale, and it must wait for the slot like any other.
func TestDaemonThatWakesAfterATakeover(t *testing.T) {
	t.Parallel()
	const rows = 2000
	w, _, _ := privateWorld(t, rows, nil)
	first := w.start()
	second := w.launch()
	w.eventually("the second waits", func() bool { return second.logged("in use") > 0 })
	l := w.load(rows, 3)
	l.until(300)
	if err := first.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	w.eventually("the second takes over", func() bool { return second.logged("msg=streaming") > 0 })
	l.until(300)
	w.settle(second)

	before := w.position()
	waits := first.logged("in use")
	if err := first.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	w.eventually("the first waits for the slot", func() bool {
		now := w.position()
		if now < before {
			t.Fatalf("the checkpoint went back from %v to %v", before, now)
		}
		before = now
		return first.logged("in use") > waits
	})
	l.until(300)
	l.end()
	w.settle(second)
	w.wantFresh(50)
	if first.logged("gap: ")+second.logged("gap: ") > 0 {
		t.Error("a gap, although nothing was lost")
	}

	// And back again.
	second.kill()
	w.cacheRows(0, 100)
	w.update(0, 100)
	w.settle(first)
	w.wantGone(0, 100)
	first.stop()
}

// position is the checkpoint.
func (w *world) position() lsn.LSN {
	w.t.Helper()
	l, err := lsn.ParseHex(w.control()["applied"])
	if err != nil {
		w.t.Fatal(err)
	}
	return l
}
