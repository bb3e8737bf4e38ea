// Package telemetry sets up what operators look at: the log and the metrics.
package telemetry

import (
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// NewLogger writes to w as "text" or "json", from the given level on: debug,
// info, warn or error.
func NewLogger(w io.Writer, format, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log level %q: want debug, info, warn or error", level)
	}
	opts := &slog.HandlerOptions{Level: l}
	switch strings.ToLower(format) {
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	}
	return nil, fmt.Errorf("log format %q: want text or json", format)
}

// HTTPLog is the ErrorLog of an HTTP server. What clients do wrong, such as handshakes
// that they break off, is as much as strangers like and shows at debug level; a
// handler's panic, after which net/http goes on (net/http/server.go, Go 1.26), is an
// error of ours.
func HTTPLog(log *slog.Logger) *stdlog.Logger { return stdlog.New(httpLog{log}, "", 0) }

type httpLog struct{ log *slog.Logger }

func (l httpLog) Write(line []byte) (int, error) {
	text := strings.TrimRight(string(line), "\n")
	if about, stack, ok := strings.Cut(text, "\n"); ok && strings.HasPrefix(text, "http: panic serving ") {
		l.log.Error(about, "stack", stack[:min(len(stack), maxCrash)])
	} else {
		l.log.Debug(text)
	}
	return len(line), nil
}

// NewRegistry makes a metrics registry with the runtime's own metrics and one
// that tells the version.
func NewRegistry(version string) *prometheus.Registry {
	reg := prometheus.NewRegistry()
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "gridfan_build_info", Help: "Always 1; the version is a label.",
		ConstLabels: prometheus.Labels{"version": version},
	})
	build.Set(1)
	reg.MustRegister(build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return reg
}
