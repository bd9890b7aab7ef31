package localserver

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// account runs the servers when we are root: Postgres refuses root, and a Redis
// that runs as root could write any file. Nil means our own account.
type account struct {
	name     string
	uid, gid int
}

// serverAccount is the first of the named accounts that exists, or nil when we are
// not root and cannot change accounts anyway.
func serverAccount(names ...string) (*account, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range names {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, errUID := strconv.Atoi(u.Uid)
		gid, errGID := strconv.Atoi(u.Gid)
		if errUID == nil && errGID == nil && uid != 0 {
			return &account{name, uid, gid}, nil
		}
	}
	return nil, fmt.Errorf("servers are not run as root, and none of the accounts %q exists: "+
		"run as an ordinary user, or create one of them (useradd --system %s)", names, names[0])
}

func (a *account) credential() *syscall.Credential {
	if a == nil {
		return nil
	}
	return &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)}
}

// own hands a file or folder over to the account.
func (a *account) own(path string) error {
	if a == nil {
		return nil
	}
	return os.Chown(path, a.uid, a.gid)
}

// reachable says whether every account can pass through dir and its parents.
func reachable(dir string) bool {
	for {
		info, err := os.Stat(dir)
		if err != nil || info.Mode().Perm()&0o001 == 0 {
			return false
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return true
		}
		dir = parent
	}
}
