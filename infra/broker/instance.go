package broker

import (
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
)

// Instance names this process in subjects and reports: the host's name, made
// safe as one token. Replicas run on hosts of different names.
var Instance = sync.OnceValue(func() string {
	host, err := os.Hostname()
	if err != nil {
		host = ""
	}
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, host)
	if name == "" {
		return "gridfan"
	}
	return name
})

func sortedKeys(m map[string]any) []string { return slices.Sorted(maps.Keys(m)) }
