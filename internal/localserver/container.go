package localserver

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// OwnerLabel is the label of containers that says who owns them, so that those of dead
// owners can be removed.
const OwnerLabel = "io.github.cdc-invalidator.owner"

// hostNetwork: on Linux a container shares the network of its host, and its server
// listens on the claimed port as an installed program does. So servers reach each other
// on 127.0.0.1, which replicas and cluster nodes need. Elsewhere the containers live in
// a virtual machine, and the port is published.
const hostNetwork = runtime.GOOS == "linux"

// Containers runs containers. There are two: the docker command, for the demo, which
// must not carry a library for it; and testcontainers, for tests (servertest).
type Containers interface {
	// Available says why no container can be run, or nil.
	Available(ctx context.Context) error
	// Create makes a container, with its image, which is pulled unless it is there.
	Create(ctx context.Context, spec ContainerSpec) (Container, error)
	// Sweep removes the containers with OwnerLabel whose owner is gone.
	Sweep(ctx context.Context, gone func(owner string) bool)
}

// ContainerSpec describes a container.
type ContainerSpec struct {
	Name, Image string
	Owner       string // the value of OwnerLabel
	Env, Args   []string
	ShmSize     int64
	// HostNetwork, or else the port on 127.0.0.1 that leads to a port in it.
	HostNetwork       bool
	Port, PublishedAs int
	// DeathSignal is what the server gets when we are killed, where that can be had.
	DeathSignal syscall.Signal
}

// Container is a container that can be started again and again.
type Container interface {
	// Start runs it, with its output appended to a file. The channel is closed when it
	// has ended. The context bounds the start only.
	Start(ctx context.Context, logPath string) (ended <-chan struct{}, err error)
	// Signal sends a signal to its main process.
	Signal(sig syscall.Signal) error
	// Exec runs a command in it, as root.
	Exec(ctx context.Context, argv ...string) error
	// Offline runs a command on the volumes of the container while it is stopped.
	Offline(ctx context.Context, argv ...string) error
	// PID of its main process as the host sees it.
	PID() int
	// Remove ends it and removes it with its volumes.
	Remove() error
}

// createContainer makes the server's container, whose server listens on the port inner
// unless it shares the host's network.
func (s *server) createContainer(ctx context.Context, containers Containers, image string, inner int, env, args []string) error {
	containers.Sweep(ctx, ownerGone)
	var err error
	s.container, err = containers.Create(ctx, ContainerSpec{
		Name: fmt.Sprintf("%s%d-%d", dirPrefix, os.Getpid(), s.port.number), Image: image, Owner: ownerID(os.Getpid()),
		Env: env, Args: args, ShmSize: 256 << 20,
		HostNetwork: hostNetwork, Port: inner, PublishedAs: s.port.number, DeathSignal: s.deathSignal,
	})
	s.version = image
	s.launch = func(ctx context.Context) (instance, error) {
		ended, err := s.container.Start(ctx, s.logPath())
		if err != nil {
			return nil, err
		}
		return &containerRun{s.container, ended}, nil
	}
	return err
}

// containerRun is one run of a container.
type containerRun struct {
	container Container
	done      <-chan struct{}
}

func (r *containerRun) ended() <-chan struct{} { return r.done }

func (r *containerRun) signal(sig syscall.Signal) error { return r.container.Signal(sig) }

func (r *containerRun) pid() int { return r.container.PID() }

// kill takes all of its processes: they end with the first one.
func (r *containerRun) kill() {
	if alive(r) {
		_ = r.container.Signal(syscall.SIGKILL)
		select {
		case <-r.done:
		case <-time.After(dockerTimeout):
		}
	}
}

// signalProcess sends a signal to a process in the container.
func signalProcess(c Container, pid int, sig syscall.Signal) error {
	ctx, cancel := context.WithTimeout(context.Background(), dockerTimeout)
	defer cancel()
	return c.Exec(ctx, "sh", "-c", fmt.Sprintf("kill -%d %d", int(sig), pid))
}

// SweepContainers removes the containers of owners that are gone from this machine.
// Whoever creates one does so first; this is for what comes after the last one.
func SweepContainers(ctx context.Context, containers Containers) { containers.Sweep(ctx, ownerGone) }

// ownerGone is false for an owner on another machine, through a shared Docker daemon.
func ownerGone(owner string) bool {
	host, rest, _ := strings.Cut(owner, "/")
	pid, _ := strconv.Atoi(strings.SplitN(rest, "/", 2)[0])
	if self, err := os.Hostname(); err != nil || host != self || pid == 0 {
		return false
	}
	return owner != ownerID(pid)
}

// ownerID names a process for as long as it lives: host, pid and, since pids are
// used again, its start time where /proc has it.
func ownerID(pid int) string {
	host, _ := os.Hostname()
	id := fmt.Sprintf("%s/%d", host, pid)
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		if syscall.Kill(pid, 0) != nil {
			return ""
		}
		return id
	}
	const startTime = 19 // field 22 of stat, counted after the name
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	if len(fields) > startTime {
		id += "/" + fields[startTime]
	}
	return id
}
