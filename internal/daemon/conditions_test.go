package daemon

import (
	"testing"

	"github.com/cdc-invalidator/cdc-invalidator/internal/admin"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

// What a session has found lives as long as the session, whichever condition it is about.
func TestConditionsDieWithTheirSession(t *testing.T) {
	for _, k := range conditionKinds() {
		b := newBoard()
		state := func() admin.State {
			for _, c := range b.conditions() {
				if c.Name == k.name {
					if c.OK != (c.State == admin.StateOK) || !c.OK && c.Reason == "" || c.Since.IsZero() || c.Ready != k.ready {
						t.Errorf("%s: %+v", k.name, c)
					}
					return c.State
				}
			}
			t.Fatalf("%s is not shown", k.name)
			return ""
		}
		want := func(when string, s admin.State) {
			t.Helper()
			if got := state(); got != s {
				t.Errorf("%s: %s %s, want %s", k.name, got, when, s)
			}
		}
		want("before anything was tried", admin.StateUnknown)
		first := b.begin()
		if !k.session {
			first = b.process
		}
		want("while nothing was tried", admin.StateUnknown)
		if first.ok(k.name) {
			t.Errorf("%s: the first success is told as a recovery", k.name)
		}
		want("after a success", admin.StateOK)
		if !first.failed(k.name, "it is away", "look") || first.failed(k.name, "it is away", "look") {
			t.Errorf("%s: a failure is news once", k.name)
		}
		want("after a failure", admin.StateFailed)
		if !k.session {
			continue
		}
		first.end()
		want("between two sessions", admin.StateFailed)
		first.ok(k.name)
		want("after a late success of the first", admin.StateFailed)
		second := b.begin()
		want("before the second has looked", admin.StateFailed)
		second.streaming(nil)
		want("when the second streams, and has not looked", admin.StateUnknown)
		if !second.ok(k.name) {
			t.Errorf("%s: a recovery is not told", k.name)
		}
		want("after the second's success", admin.StateOK)
		first.failed(k.name, "late", "")
		want("after a late failure of the first", admin.StateOK)
		second.end()
		want("after the second's end", admin.StateUnknown)
		b.begin()
		want("in a third that has not looked", admin.StateUnknown)
	}
}

// What makes invalidations wider is kept by table, and goes with what mended it.
func TestWideningIsKeptByTable(t *testing.T) {
	b := newBoard()
	c := b.begin()
	finding := func(table string) replication.Finding {
		return replication.Finding{Code: replication.IdentityNarrow, Schema: "public", Table: table, Problem: "wide", Fix: "ALTER TABLE " + table}
	}
	identity := func() admin.Condition {
		for _, c := range b.conditions() {
			if c.Name == conditionIdentity {
				return c
			}
		}
		t.Fatal("it is not shown")
		return admin.Condition{}
	}
	c.widening("", "", []replication.Finding{finding("a"), finding("b")})
	c.widening("public", "a", nil)
	if got := identity(); got.OK || got.Reason != "table public.b: wide" || got.Fix != "ALTER TABLE b" {
		t.Errorf("%+v", got)
	}
	c.widening("public", "b", nil)
	if got := identity(); !got.OK {
		t.Errorf("%+v", got)
	}
	c.widening("public", "a", []replication.Finding{finding("a"), {Code: replication.NoReplicaIdentity, Table: "a", Problem: "no"}})
	if got := identity(); got.OK || got.Reason != "table public.a: wide" {
		t.Errorf("%+v", got)
	}
}
