package app

import (
	"fmt"

	"github.com/gridfan/gridfan/cmd/internal/config"
)

// Role is the part of the work that one process does.
type Role string

// The roles. Processes of different roles meet only in an external broker.
const (
	// All does everything in one process.
	All Role = "all"
	// Router takes events in and stores them: the public ingress, pollers, receivers,
	// quarantine and spool. It also serves receivers that fetch events over its
	// public listener.
	Router Role = "router"
	// Subscribers delivers what is stored: workers, dead letters, retention and
	// books. It takes the subscribers of the configuration file over.
	Subscribers Role = "subscribers"
)

// ParseRole reads a role by its name; empty means All.
func ParseRole(s string) (Role, error) {
	switch r := Role(s); r {
	case "":
		return All, nil
	case All, Router, Subscribers:
		return r, nil
	}
	return "", fmt.Errorf("want %s, %s or %s, got %q", All, Router, Subscribers, s)
}

// takesIn says whether events enter here, and delivers whether all subscribers are
// served here.
func (r Role) takesIn() bool  { return r != Subscribers }
func (r Role) delivers() bool { return r != Router }

// Fits refuses a split role without a broker in the middle.
func (r Role) Fits(cfg *config.Config) error {
	if r == All || cfg.Broker.URL != "" {
		return nil
	}
	return fmt.Errorf("--role %s: routers and subscribers meet in an external broker, and the configuration names none: set broker.url, or run everything in one process with --role %s", r, All)
}
