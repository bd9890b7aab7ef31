package localserver

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	dockerTimeout = 30 * time.Second
	pullTimeout   = 5 * time.Minute
)

// Docker runs containers with the docker command. A container runs attached to a
// client process of ours, which passes signals on: so it has a child's life, and ends
// when we are killed.
type Docker struct{}

// Available implements Containers.
func (Docker) Available(ctx context.Context) error {
	if _, err := docker(ctx, dockerTimeout, "version", "--format", "{{.Server.Version}}"); err != nil {
		return missingError{err}
	}
	return nil
}

// docker runs one command of the Docker client and returns what it printed.
func docker(ctx context.Context, timeout time.Duration, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env = environment()
	cmd.SysProcAttr = childAttr(nil, syscall.SIGKILL)
	out, err := cmd.Output()
	if err == nil {
		return strings.TrimSpace(string(out)), nil
	}
	if errors.Is(err, exec.ErrNotFound) {
		return "", errors.New("the docker command is not installed")
	}
	cause := err.Error()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && len(exit.Stderr) > 0 {
		cause = strings.TrimSpace(string(exit.Stderr))
	}
	return "", fmt.Errorf("docker %s: %s", args[0], cause)
}

// getImage pulls an image unless it is there.
func getImage(ctx context.Context, image string) error {
	if _, err := docker(ctx, dockerTimeout, "image", "inspect", "--format", "{{.Id}}", image); err == nil {
		return nil
	}
	if _, err := docker(ctx, pullTimeout, "pull", "--quiet", image); err != nil {
		return missingError{fmt.Errorf("get the container image %s: %w", image, err)}
	}
	return nil
}

// Create implements Containers.
func (Docker) Create(ctx context.Context, spec ContainerSpec) (Container, error) {
	if err := getImage(ctx, spec.Image); err != nil {
		return nil, err
	}
	argv := []string{"create", "--name", spec.Name, "--label", OwnerLabel + "=" + spec.Owner, "--shm-size", strconv.FormatInt(spec.ShmSize, 10)}
	if spec.HostNetwork {
		argv = append(argv, "--network", "host")
	} else {
		argv = append(argv, "--publish", fmt.Sprintf("127.0.0.1:%d:%d", spec.PublishedAs, spec.Port))
	}
	for _, e := range spec.Env {
		argv = append(argv, "--env", e)
	}
	argv = append(append(argv, spec.Image), spec.Args...)
	if _, err := docker(ctx, dockerTimeout, argv...); err != nil {
		return nil, fmt.Errorf("create a container of %s: %w", spec.Image, err)
	}
	return &dockerContainer{name: spec.Name, image: spec.Image, deathSignal: spec.DeathSignal}, nil
}

// Sweep implements Containers.
func (Docker) Sweep(ctx context.Context, gone func(owner string) bool) {
	list, err := docker(ctx, dockerTimeout, "ps", "--all", "--filter", "label="+OwnerLabel,
		"--format", `{{.ID}} {{.Label "`+OwnerLabel+`"}}`)
	if err != nil {
		return
	}
	for line := range strings.Lines(list) {
		if id, owner, _ := strings.Cut(strings.TrimSpace(line), " "); gone(owner) {
			_, _ = docker(ctx, dockerTimeout, "rm", "--force", "--volumes", id)
		}
	}
}

type dockerContainer struct {
	name, image string
	deathSignal syscall.Signal
}

func (c *dockerContainer) Start(_ context.Context, logPath string) (<-chan struct{}, error) {
	cmd := exec.Command("docker", "start", "--attach", c.name)
	cmd.Env = environment()
	cmd.SysProcAttr = childAttr(nil, c.deathSignal)
	client, err := start(cmd, logPath)
	if err != nil {
		return nil, err
	}
	return client.done, nil
}

func (c *dockerContainer) Signal(sig syscall.Signal) error {
	_, err := docker(context.Background(), dockerTimeout, "kill", "--signal", strconv.Itoa(int(sig)), c.name)
	return err
}

func (c *dockerContainer) Exec(ctx context.Context, argv ...string) error {
	_, err := docker(ctx, dockerTimeout, append([]string{"exec", "--user", "0", c.name}, argv...)...)
	return err
}

func (c *dockerContainer) Offline(ctx context.Context, argv ...string) error {
	_, err := docker(ctx, dockerTimeout, append([]string{"run", "--rm", "--network", "none", "--user", "0", "--volumes-from", c.name,
		"--entrypoint", argv[0], c.image}, argv[1:]...)...)
	return err
}

func (c *dockerContainer) PID() int {
	out, err := docker(context.Background(), dockerTimeout, "inspect", "--format", "{{.State.Pid}}", c.name)
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(out)
	return pid
}

func (c *dockerContainer) Remove() error {
	_, err := docker(context.Background(), dockerTimeout, "rm", "--force", "--volumes", c.name)
	return err
}
