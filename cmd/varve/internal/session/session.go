// Package session takes a daemon out of the login session that it was started
// from.
//
// systemd keeps the processes of a session in a control group, and ends them all
// at the logout where KillUserProcesses=yes is set (logind.conf(5)), and in any
// case early at a shutdown, when VMs still run. A session of its own for the
// kernel (setsid) changes nothing about that. What helps is a scope of its own
// (systemd.scope(5)), as systemd-run(1) makes it.
package session

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
)

// InLogin says whether this process belongs to a login of a user, so that it is
// ended with it.
func InLogin() bool {
	text, err := os.ReadFile("/proc/self/cgroup")
	return err == nil && loginGroup(string(text))
}

// loginGroup says whether a process with this /proc/PID/cgroup belongs to a login
// (cgroups(7); the line of systemd is that of version 2, or of its own hierarchy).
func loginGroup(text string) bool {
	for line := range strings.Lines(text) {
		hierarchy := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(hierarchy) == 3 && (hierarchy[1] == "" || hierarchy[1] == "name=systemd") &&
			strings.HasPrefix(hierarchy[2], "/user.slice/") {
			return true
		}
	}
	return false
}

// Leave moves this process into a scope of its own and gives its name. It ends
// before the scopes of VMs begin, and so is stopped after them. Of root's mounts
// it belongs to the system; of others' to the user's own systemd, which lives as
// long as the user is logged in anywhere, or for ever after "loginctl
// enable-linger".
func Leave(ctx context.Context, description string) (unit string, err error) {
	address, err := busAddress(os.Geteuid())
	if err != nil {
		return "", err
	}
	conn, err := dbus.NewConnection(func() (*godbus.Conn, error) { return connect(ctx, address) })
	if err != nil {
		return "", fmt.Errorf("reach systemd at %s: %w", address, err)
	}
	defer conn.Close()
	unit = "varve-" + strconv.Itoa(os.Getpid()) + ".scope"
	done := make(chan string, 1)
	if _, err := conn.StartTransientUnitContext(ctx, unit, "fail", properties(os.Geteuid(), description), done); err != nil {
		return "", fmt.Errorf("ask systemd for the scope %s: %w", unit, err)
	}
	select {
	case result := <-done:
		if result != "done" {
			return "", fmt.Errorf("systemd did not make the scope %s: %s", unit, result)
		}
		return unit, nil
	case <-ctx.Done():
		return "", fmt.Errorf("wait for the scope %s: %w", unit, ctx.Err())
	}
}

// properties are those of the scope.
func properties(uid int, description string) []dbus.Property {
	list := []dbus.Property{
		dbus.PropDescription(description),
		dbus.PropPids(uint32(os.Getpid())),
		{Name: "CollectMode", Value: godbus.MakeVariant("inactive-or-failed")},
	}
	if uid != 0 {
		return append(list, dbus.PropSlice("app.slice"))
	}
	return append(list, dbus.PropSlice("system.slice"),
		dbus.PropBefore("libvirtd.service", "virtqemud.service", "libvirt-guests.service"))
}

// busAddress is where the systemd that is responsible for a user listens: that of
// the system for root, else the user's own.
func busAddress(uid int) (string, error) {
	variable, socket := "DBUS_SYSTEM_BUS_ADDRESS", "/run/dbus/system_bus_socket"
	if uid != 0 {
		variable = "DBUS_SESSION_BUS_ADDRESS"
		runtime := os.Getenv("XDG_RUNTIME_DIR")
		if runtime == "" {
			runtime = filepath.Join("/run/user", strconv.Itoa(uid))
		}
		socket = filepath.Join(runtime, "bus")
	}
	if address := os.Getenv(variable); address != "" {
		return address, nil
	}
	if _, err := os.Stat(socket); err != nil {
		return "", errors.Join(errors.New("no systemd that could be asked"), err)
	}
	return "unix:path=" + socket, nil
}

// connect opens a connection to a bus as this user.
func connect(ctx context.Context, address string) (*godbus.Conn, error) {
	conn, err := godbus.Dial(address, godbus.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	// By number: a static program looks up no names.
	if err := conn.Auth([]godbus.Auth{godbus.AuthExternal(strconv.Itoa(os.Geteuid()))}); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if err := conn.Hello(); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}
