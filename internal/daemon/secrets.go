package daemon

import (
	"errors"
	"sync"

	"github.com/cdc-invalidator/cdc-invalidator/internal/tlsfault"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
	"github.com/cdc-invalidator/cdc-invalidator/sink"
)

// secrets are the passwords and certificates in use. They are read again with each
// reload, before each session, and whenever a server refuses the ones that we have, so
// that a rotated password needs no restart. Only they change: another server needs one,
// since a session decides what the servers have before anything of them is trusted.
type secrets struct {
	mu      sync.Mutex
	source  mapping.Secret
	refused string // what the last attempt failed of, to say it once
}

// sourceURL is source.url with today's password.
func (d *daemon) sourceURL() string {
	d.secrets.mu.Lock()
	defer d.secrets.mu.Unlock()
	return d.secrets.source.Reveal()
}

// takeSecrets takes the secrets of a file that was read anew. complete is false when
// the file has settings of source or redis that only a restart takes.
func (d *daemon) takeSecrets(file *mapping.File) (complete bool) {
	d.secrets.mu.Lock()
	defer d.secrets.mu.Unlock()
	source, redis := file.Source, file.Redis
	source.URL, redis.URL = d.file.Source.URL, d.file.Redis.URL
	if source.DefaultHeartbeat && d.file.Source.DefaultHeartbeat {
		source.Heartbeat = d.file.Source.Heartbeat // follows the classes
	}
	complete = source == d.file.Source && redis == d.file.Redis
	switch {
	case file.Source.URL == d.secrets.source:
	case replication.SameServer(file.Source.URL.Reveal(), d.secrets.source.Reveal()):
		d.secrets.source = file.Source.URL
		d.log.Info("source.url has other credentials; they are used from the next connection on")
	default:
		complete = false
	}
	// Asked even if the URL is the same: certificates that it names may have changed.
	changed, err := d.sink.UpdateLogin(file.Redis.URL.Reveal())
	switch {
	case err != nil:
		complete = false
		d.log.Debug("redis.url is kept", "error", err)
	case changed:
		d.log.Info("redis.url has other credentials; they are used from the next connection on")
	}
	return complete
}

// rereadSecrets takes them from the file as it is now. A file that cannot be read
// leaves those that we have, and is tried again with the next connection.
func (d *daemon) rereadSecrets() {
	if d.o.Config == "" {
		return
	}
	file, err := mapping.Load(d.o.Config)
	if err == nil {
		d.takeSecrets(file)
	}
	d.secrets.mu.Lock()
	defer d.secrets.mu.Unlock()
	was := d.secrets.refused
	d.secrets.refused = ""
	if err != nil {
		d.secrets.refused = err.Error()
	}
	if err != nil && was != d.secrets.refused {
		d.log.Warn("credentials could not be read again; those from before stay in use", "file", d.o.Config, "error", err)
	}
}

// refusesLogin says that a server knows us no more under our password.
func refusesLogin(err error) bool { return replication.RefusesLogin(err) || sink.RefusesLogin(err) }

// startFault is err where neither waiting nor a server that comes back mends it, else nil.
// Before anything has streamed it ends the daemon: what starts with such an error was set up
// wrongly, and whoever does it is looking.
func (d *daemon) startFault(err error) error {
	var config *replication.ConfigError
	var redis *sink.Error
	var away *replication.UnavailableError
	switch _, untrusted := tlsfault.Find(err); {
	case errors.As(err, &config), untrusted && !errors.As(err, &away), errors.As(err, &redis) && redis.Configuration():
		return err
	case errors.Is(err, sink.ErrReplica) && d.sink.Kind() == "standalone": // no sentinel will name another one
		return &replication.ConfigError{Op: "attach to redis", Problem: "redis.url names a replica, which takes no writes", Err: sink.ErrReplica,
			Fix: "name the primary in redis.url, or the sentinels (redis+sentinel://host:port,host:port/<name of the group>)"}
	}
	return nil
}
