package localserver

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"strconv"
)

// port is a TCP port on loopback that is ours also while nothing listens on it,
// so that a server can be stopped and started again on the same one.
type port struct {
	number int
	claim  net.Listener
}

// Ports come from below the range that Linux gives to outgoing connections: one of
// those may take the port of a server that is down for a moment. The bus of a Redis
// cluster uses the port 10000 above; that one is free as well.
const lowestPort, highestPort, busOffset = 13000, 22000, 10000

// claimPort finds a free port. Other processes that use this package keep off it:
// the claim is an abstract socket, which needs no file and ends with its owner.
func claimPort() (*port, error) {
	for range 200 {
		n := lowestPort + rand.IntN(highestPort-lowestPort)
		p := &port{number: n}
		if runtime.GOOS == "linux" {
			claim, err := net.Listen("unix", "@cdc-invalidator-port-"+strconv.Itoa(n))
			if err != nil {
				continue
			}
			p.claim = claim
		}
		if free(n) && free(n+busOffset) {
			return p, nil
		}
		p.release()
	}
	return nil, errors.New("find a free TCP port on 127.0.0.1: 200 attempts failed")
}

func (p *port) release() {
	if p.claim != nil {
		p.claim.Close()
	}
}

func (p *port) address() string { return fmt.Sprintf("127.0.0.1:%d", p.number) }

func free(n int) bool {
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", n))
	if err != nil {
		return false
	}
	l.Close()
	return true
}
