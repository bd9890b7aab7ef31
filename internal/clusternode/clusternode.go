// Package clusternode reads what a node of a Redis Cluster says of itself, and finds keys
// that belong to it. It is shared by the daemon, which leaves a mark on each primary, and
// the reader's library, which looks for it.
package clusternode

import (
	"errors"
	"iter"
	"strconv"
	"strings"
)

// Node is one node, as it answers CLUSTER NODES.
type Node struct {
	ID      string
	Primary bool
	// Slots are what it owns, as text: ranges, and [slot->-id] for one that moves away.
	Slots []string
	// Targets are the addresses of the nodes that slots of it are moving to.
	Targets []string

	owned [][2]uint16
}

// Parse reads the answer of CLUSTER NODES, whose lines are
//
//	id host:port@bus[,name] flags primary ping pong epoch link slot...
//
// with [slot->-id] among the slots of the node that was asked, for one that moves away, and
// [slot-<-id] for one that moves here.
func Parse(text string) (Node, error) {
	var n Node
	addrs := make(map[string]string)
	for line := range strings.SplitSeq(text, "\n") {
		f := strings.Fields(line)
		if len(f) < 8 {
			continue
		}
		addrs[f[0]], _, _ = strings.Cut(f[1], "@")
		if strings.Contains(f[2], "myself") {
			n.ID, n.Slots = f[0], f[8:]
			n.Primary = strings.Contains(f[2], "master")
		}
	}
	if n.ID == "" {
		return n, errors.New("CLUSTER NODES does not name the node that was asked")
	}
	moving := make(map[uint64]bool)
	for _, s := range n.Slots {
		if slot, id, ok := strings.Cut(strings.Trim(s, "[]"), "->-"); ok {
			if number, err := strconv.ParseUint(slot, 10, 14); err == nil {
				moving[number] = true
			}
			if addrs[id] != "" {
				n.Targets = append(n.Targets, addrs[id])
			}
		}
	}
	for _, s := range n.Slots {
		if strings.HasPrefix(s, "[") {
			continue
		}
		from, to, ok := strings.Cut(s, "-")
		if !ok {
			to = from
		}
		first, err1 := strconv.ParseUint(from, 10, 14)
		last, err2 := strconv.ParseUint(to, 10, 14)
		if err1 != nil || err2 != nil {
			return n, errors.New("CLUSTER NODES has slots that cannot be read: " + strconv.Quote(s))
		}
		n.own(first, last, moving)
	}
	return n, nil
}

// own notes a range without the slots of it that are moving away: a key that is not there
// cannot be made in those.
func (n *Node) own(first, last uint64, moving map[uint64]bool) {
	for slot := range moving {
		if slot >= first && slot <= last {
			if slot > first {
				n.own(first, slot-1, moving)
			}
			if slot < last {
				n.own(slot+1, last, moving)
			}
			return
		}
	}
	n.owned = append(n.owned, [2]uint16{uint16(first), uint16(last)})
}

func (n Node) owns(slot uint16) bool {
	for _, r := range n.owned {
		if slot >= r[0] && slot <= r[1] {
			return true
		}
	}
	return false
}

// Tags yields the hash tags "0", "1", "2", ... of which the node owns the slot. The first of
// them is the node's own: everybody finds the same, and it stays the same until that very
// slot moves, or the node gets one with an earlier tag.
func (n Node) Tags() iter.Seq[string] {
	return func(yield func(string) bool) {
		if len(n.owned) == 0 {
			return
		}
		for i := 0; ; i++ {
			tag := strconv.Itoa(i)
			if n.owns(Slot(tag)) && !yield(tag) {
				return
			}
		}
	}
}

// Slot is the hash slot of a tag: CRC16 (XMODEM) modulo 16384.
func Slot(tag string) uint16 {
	var crc uint16
	for i := range len(tag) {
		crc ^= uint16(tag[i]) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
	}
	return crc % 16384
}
