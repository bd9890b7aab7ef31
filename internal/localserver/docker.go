package localserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Containers carry who owns them, so that those of dead owners can be removed.
const (
	ownerLabel    = "io.github.cdc-invalidator.owner"
	dockerTimeout = 30 * time.Second
	pullTimeout   = 5 * time.Minute
)

// dockerWorks says why Docker cannot be used, or nil.
func dockerWorks(ctx context.Context) error {
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

// container is a created container. It runs attached to a client process of ours,
// which passes signals on: so it has a child's life, and ends when we are killed.
type container struct{ name string }

// createContainer makes a container whose port inner is reached on p.
func createContainer(ctx context.Context, image string, p *port, inner int, env, args []string) (*container, error) {
	sweepContainers(ctx)
	if err := getImage(ctx, image); err != nil {
		return nil, err
	}
	c := &container{name: fmt.Sprintf("%s%d-%d", dirPrefix, os.Getpid(), p.number)}
	argv := []string{"create", "--name", c.name, "--label", ownerLabel + "=" + ownerID(os.Getpid()),
		"--publish", fmt.Sprintf("%s:%d", p.address(), inner), "--shm-size", "256m"}
	for _, e := range env {
		argv = append(argv, "--env", e)
	}
	argv = append(append(argv, image), args...)
	if _, err := docker(ctx, dockerTimeout, argv...); err != nil {
		return nil, fmt.Errorf("create a container of %s: %w", image, err)
	}
	return c, nil
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

func (c *container) command() *exec.Cmd {
	return exec.Command("docker", "start", "--attach", c.name)
}

func (c *container) signal(sig syscall.Signal) error {
	_, err := docker(context.Background(), dockerTimeout, "kill", "--signal", strconv.Itoa(int(sig)), c.name)
	return err
}

// signalProcess signals a process inside the container.
func (c *container) signalProcess(pid int, sig syscall.Signal) error {
	_, err := docker(context.Background(), dockerTimeout, "exec", "--user", "0", c.name,
		"sh", "-c", fmt.Sprintf("kill -%d %d", int(sig), pid))
	return err
}

func (c *container) remove() error {
	_, err := docker(context.Background(), dockerTimeout, "rm", "--force", "--volumes", c.name)
	return err
}

// sweepContainers removes the containers of owners that are gone from this machine.
func sweepContainers(ctx context.Context) {
	list, err := docker(ctx, dockerTimeout, "ps", "--all", "--filter", "label="+ownerLabel,
		"--format", `{{.ID}} {{.Label "`+ownerLabel+`"}}`)
	if err != nil {
		return
	}
	for line := range strings.Lines(list) {
		id, owner, _ := strings.Cut(strings.TrimSpace(line), " ")
		host, rest, _ := strings.Cut(owner, "/")
		pid, _ := strconv.Atoi(strings.SplitN(rest, "/", 2)[0])
		if self, err := os.Hostname(); err != nil || host != self || pid == 0 {
			continue // another machine's, through a shared Docker daemon
		}
		if owner != ownerID(pid) {
			_, _ = docker(ctx, dockerTimeout, "rm", "--force", "--volumes", id)
		}
	}
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
