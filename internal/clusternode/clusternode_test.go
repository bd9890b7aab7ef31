package clusternode

import (
	"slices"
	"testing"
)

func TestSlot(t *testing.T) {
	// From the specification of Redis Cluster: CRC16 of "123456789" is 0x31c3.
	for tag, want := range map[string]uint16{"123456789": 0x31c3 % 16384, "": 0, "foo": 12182, "user1000": 3443} {
		if got := Slot(tag); got != want {
			t.Errorf("slot of %q: %d, want %d", tag, got, want)
		}
	}
}

func TestParse(t *testing.T) {
	n, err := Parse(`aa 127.0.0.1:7001@17001 myself,master - 0 0 1 connected 0-5460 9842 [5-<-bb] [9842->-cc] [100->-bb]
bb 127.0.0.1:7002@17002,host master - 0 0 2 connected 5461-9841
cc 127.0.0.1:7003@17003 slave bb 0 0 2 connected
`)
	if err != nil {
		t.Fatal(err)
	}
	if n.ID != "aa" || !n.Primary || !slices.Equal(n.Targets, []string{"127.0.0.1:7003", "127.0.0.1:7002"}) {
		t.Errorf("%+v", n)
	}
	if n.owns(100) || n.owns(9842) || !n.owns(99) || !n.owns(101) || !n.owns(0) || !n.owns(5460) || n.owns(5461) {
		t.Errorf("it owns %v", n.owned)
	}
	for tag := range n.Tags() {
		if s := Slot(tag); s > 5460 || s == 100 {
			t.Errorf("tag %s is in slot %d", tag, s)
		}
		if tag == "3" { // slots of "0" to "3": 13907, 9842, 5649, 1584
			break
		}
		t.Errorf("the first tag is %s", tag)
		break
	}
	if _, err := Parse("aa 127.0.0.1:7001@17001 slave bb 0 0 1 connected\n"); err == nil {
		t.Error("a list without the node itself is read")
	}
	none, err := Parse("aa 127.0.0.1:7001@17001 myself,slave bb 0 0 1 connected\n")
	if err != nil || none.Primary {
		t.Error(none, err)
	}
	for range none.Tags() {
		t.Error("a node without slots has a tag")
	}
}
