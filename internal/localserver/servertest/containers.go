package servertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/exec"
	tclog "github.com/testcontainers/testcontainers-go/log"
	"github.com/testcontainers/testcontainers-go/wait"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
)

// containerTimeout bounds one request to Docker. Pulling an image has its own limit.
const (
	containerTimeout = 60 * time.Second
	pullTimeout      = 5 * time.Minute
)

// Containers runs the servers of tests in containers by testcontainers, where
// CDC_SERVERS=docker asks for it or no server is installed.
//
// Its reaper (Ryuk) is an image that cannot be had everywhere, and is not used. Nothing
// is left all the same: a test closes its servers; what a killed test binary left is
// removed by the next one that creates a container, and by `which -sweep`.
type Containers struct{}

// provider is made for each use: it keeps nothing but idle connections, which the check
// for leaked goroutines would find.
func provider() (*testcontainers.DockerProvider, error) {
	// Read when the first provider is made; there is no other way to say it.
	if os.Getenv("TESTCONTAINERS_RYUK_DISABLED") == "" {
		if err := os.Setenv("TESTCONTAINERS_RYUK_DISABLED", "true"); err != nil {
			return nil, err
		}
	}
	tclog.SetDefault(tclog.NewNoopLogger())
	p, err := testcontainers.NewDockerProvider(testcontainers.WithLogger(tclog.NewNoopLogger()))
	if err != nil {
		return nil, fmt.Errorf("reach Docker: %w", err)
	}
	return p, nil
}

// Available implements localserver.Containers.
func (Containers) Available(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, containerTimeout)
	defer cancel()
	p, err := provider()
	if err != nil {
		return err
	}
	defer p.Close()
	return p.Health(ctx)
}

// Create implements localserver.Containers.
func (Containers) Create(ctx context.Context, spec localserver.ContainerSpec) (localserver.Container, error) {
	p, err := provider()
	if err != nil {
		return nil, err
	}
	env := make(map[string]string, len(spec.Env))
	for _, e := range spec.Env {
		name, value, _ := strings.Cut(e, "=")
		env[name] = value
	}
	ctx, cancel := context.WithTimeout(ctx, pullTimeout)
	defer cancel()
	c, err := p.CreateContainer(ctx, testcontainers.ContainerRequest{
		Name: spec.Name, Image: spec.Image, Env: env, Cmd: spec.Args,
		Labels: map[string]string{localserver.OwnerLabel: spec.Owner},
		HostConfigModifier: func(h *container.HostConfig) {
			h.ShmSize = spec.ShmSize
			if spec.HostNetwork {
				h.NetworkMode = network.NetworkHost
				return
			}
			h.PortBindings = network.PortMap{network.MustParsePort(strconv.Itoa(spec.Port) + "/tcp"): {
				{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: strconv.Itoa(spec.PublishedAs)},
			}}
		},
	})
	if err != nil {
		if c != nil {
			err = errors.Join(err, testcontainers.TerminateContainer(c))
		}
		return nil, fmt.Errorf("create a container of %s: %w", spec.Image, err)
	}
	return &testContainer{p, spec.Image, c}, nil
}

// Sweep implements localserver.Containers.
func (Containers) Sweep(ctx context.Context, gone func(owner string) bool) {
	ctx, cancel := context.WithTimeout(ctx, containerTimeout)
	defer cancel()
	p, err := provider()
	if err != nil {
		return // whoever creates a container next will say so
	}
	defer p.Close()
	list, err := p.Client().ContainerList(ctx, client.ContainerListOptions{
		All: true, Filters: client.Filters{}.Add("label", localserver.OwnerLabel),
	})
	if err != nil {
		return
	}
	for _, c := range list.Items {
		if gone(c.Labels[localserver.OwnerLabel]) {
			_, _ = p.Client().ContainerRemove(ctx, c.ID, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
		}
	}
}

type testContainer struct {
	provider *testcontainers.DockerProvider
	image    string
	testcontainers.Container
}

func (c *testContainer) Start(ctx context.Context, logPath string) (<-chan struct{}, error) {
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the server's log: %w", err)
	}
	// Both before the start, so that neither its first line nor its end can be missed.
	// They last as long as the container runs, not as long as its start.
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	out, err := c.provider.Client().ContainerAttach(running, c.GetContainerID(),
		client.ContainerAttachOptions{Stream: true, Stdout: true, Stderr: true})
	if err != nil {
		stop()
		return nil, errors.Join(fmt.Errorf("attach to the container: %w", err), log.Close())
	}
	end := c.provider.Client().ContainerWait(running, c.GetContainerID(), client.ContainerWaitOptions{Condition: container.WaitConditionNextExit})
	ended := make(chan struct{})
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		_, _ = stdcopy.StdCopy(log, log, out.Reader) // until the container ends
	}()
	finish := func() {
		out.Close()
		<-copied
		log.Close()
		stop()
		_ = c.provider.Close()
		close(ended)
	}
	if err := c.Container.Start(ctx); err != nil {
		finish()
		return nil, err
	}
	go func() {
		select {
		case <-end.Result:
		case <-end.Error: // it was removed, or Docker went away
		}
		// What it said last comes before the news of its end, or with it.
		select {
		case <-copied:
		case <-time.After(time.Second):
		}
		finish()
	}()
	return ended, nil
}

func (c *testContainer) Signal(sig syscall.Signal) error {
	ctx, cancel := context.WithTimeout(context.Background(), containerTimeout)
	defer cancel()
	defer c.provider.Close()
	_, err := c.provider.Client().ContainerKill(ctx, c.GetContainerID(), client.ContainerKillOptions{Signal: strconv.Itoa(int(sig))})
	return err
}

func (c *testContainer) Exec(ctx context.Context, argv ...string) error {
	defer c.provider.Close()
	code, out, err := c.Container.Exec(ctx, argv, exec.WithUser("0"), exec.Multiplexed())
	if err != nil {
		return err
	}
	said, err := io.ReadAll(out)
	if err == nil && code != 0 {
		err = fmt.Errorf("%s: exit code %d: %s", argv[0], code, bytes.TrimSpace(said))
	}
	return err
}

func (c *testContainer) Offline(ctx context.Context, argv ...string) error {
	defer c.provider.Close()
	other, err := c.provider.RunContainer(ctx, testcontainers.ContainerRequest{
		Image: c.image, Entrypoint: argv, WaitingFor: wait.ForExit(),
		HostConfigModifier: func(h *container.HostConfig) {
			h.VolumesFrom, h.NetworkMode = []string{c.GetContainerID()}, network.NetworkNone
		},
	})
	if err != nil {
		return errors.Join(err, testcontainers.TerminateContainer(other))
	}
	state, err := other.State(ctx)
	if err == nil && state.ExitCode != 0 {
		err = fmt.Errorf("%s: exit code %d", argv[0], state.ExitCode)
	}
	return errors.Join(err, testcontainers.TerminateContainer(other))
}

func (c *testContainer) PID() int {
	ctx, cancel := context.WithTimeout(context.Background(), containerTimeout)
	defer cancel()
	defer c.provider.Close()
	state, err := c.State(ctx)
	if err != nil {
		return 0
	}
	return state.Pid
}

func (c *testContainer) Remove() error {
	ctx, cancel := context.WithTimeout(context.Background(), containerTimeout)
	defer cancel()
	defer c.provider.Close()
	return c.Terminate(ctx, testcontainers.StopTimeout(0))
}
