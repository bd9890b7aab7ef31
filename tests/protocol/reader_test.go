package protocol

import (
	"testing"
	"time"
)

// patience is how long a case waits for what has to happen.
const patience = 20 * time.Second

// reader is an implementation of docs/protocol.md, alone in its process or client.
type reader interface {
	// begin starts a read. Its loader says that it is loading, by then in its transaction,
	// and goes on as it is told.
	begin(t *testing.T, r request) *read
	// token is for the reads of any reader.
	token(t *testing.T) string
}

// request is one read: of a row, in table items, under a key.
type request struct {
	Family    string         `json:"get"`
	Vars      map[string]any `json:"vars"`
	Row       int            `json:"row"`
	AtLeast   string         `json:"at_least"`
	DependsOn [][]any        `json:"depends_on"`
}

// What a loader may be told to do.
const (
	goRow     = "row"     // read the row
	goFail    = "fail"    // fail
	goDown    = "down"    // lose the connection
	goWrite   = "write"   // try to write, and fail with that
	goSwallow = "swallow" // try to write, and return something all the same
)

// result is what a read came to.
type result struct {
	Kind  string // value, missing or error
	Value string
}

// read is a read under way.
type read struct {
	loading chan struct{}
	step    func(string)
	done    chan result
}

func newRead(step func(string)) *read {
	return &read{loading: make(chan struct{}, 16), step: step, done: make(chan result, 1)}
}

// loads waits until the loader runs.
func (r *read) loads(t *testing.T) *read {
	t.Helper()
	select {
	case <-r.loading:
	case got := <-r.done:
		select {
		case <-r.loading: // in the background, of a read that was served
			r.done <- got
		case <-time.After(time.Second):
			t.Fatalf("the read ended with %q, and did not load", got)
		}
	case <-time.After(patience):
		t.Fatal("the read does not load")
	}
	return r
}

// ends waits for the end, and for no load before it.
func (r *read) ends(t *testing.T, want result) {
	t.Helper()
	if got := r.result(t); got.Kind != want.Kind || got.Kind != "error" && got != want {
		t.Fatalf("the read ended with %q, want %q", got, want)
	}
}

func (r *read) result(t *testing.T) result {
	t.Helper()
	select {
	case got := <-r.done:
		return got
	case <-r.loading:
		t.Fatal("the read loads, and should not have to")
	case <-time.After(patience):
		t.Fatal("the read does not end")
	}
	return result{}
}

// loadsRow is a whole read that has to load.
func (r *read) loadsRow(t *testing.T, want result) {
	t.Helper()
	r.loads(t).step(goRow)
	r.ends(t, want)
}

func value(v string) result { return result{"value", v} }

var missing, failed = result{Kind: "missing"}, result{Kind: "error"}
