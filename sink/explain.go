package sink

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/cdc-invalidator/cdc-invalidator/internal/peer"
	"github.com/cdc-invalidator/cdc-invalidator/internal/tlsfault"
)

// explained looks, where a server is there and no connection came about, whether it is a
// Redis at all, and with or without TLS as redis.url has it.
func (b *backend) explained(ctx context.Context, err error) error {
	if kind, _ := classify(err); kind == KindCanceled || kind == KindConfiguration || replyCode(err) != "" && kind != KindOther || errors.Is(err, ErrReplica) {
		return err
	}
	var known *Error
	if errors.As(err, &known) && known.Kind == KindConfiguration {
		return err
	}
	for _, addr := range b.endpoint.addrs {
		const correct = "correct the host and port in redis.url"
		fault := func(problem, hint string) error {
			return &Error{Kind: KindConfiguration, Addr: addr, Err: fmt.Errorf("%s: %w", problem, err), Hint: hint}
		}
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" && len(b.endpoint.addrs) == 1 {
			return err // nobody is there to be asked
		}
		found := peer.Identify(ctx, b.endpoint.network, addr)
		switch secured := b.login.Load().tls != nil; found.Protocol {
		case peer.Postgres:
			return fault("what answers is a Postgres, and no Redis", correct+": it may be that of source.url")
		case peer.HTTP:
			return fault("what answers speaks HTTP, and is no Redis", correct+": it is that of a web server")
		case peer.TLS:
			if !secured {
				return fault("the server speaks TLS there", "use rediss:// in redis.url, or the port that the server has without TLS")
			}
		case peer.Redis:
			if secured {
				return fault(tlsfault.ErrNoTLS.Error(), tlsFix(tlsfault.NoTLS))
			}
		case peer.Unknown:
			if found.Said != "" {
				return &Error{Kind: KindUnavailable, Addr: addr, Err: fmt.Errorf("what answers does not speak as a Redis does: it said %s", found.Said), Hint: "does redis.url have the right host and port?"}
			}
		default:
			return fault("what answers speaks "+string(found.Protocol)+", and is no Redis", correct+": it is that of another service")
		}
	}
	return err
}
