//go:build postgres && linux

package sqlrows

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/router/poll"
	"github.com/gridfan/gridfan/schemas/record"
)

// These tests want a PostgreSQL server of their own: make postgres runs them.
var binaries = flag.String("pgbin", "", "the folder with initdb and postgres")

// The password has what a URL has to escape.
const (
	canary  = "canary p@ss:w/rd%"
	escaped = "canary%20p%40ss%3Aw%2Frd%25"
)

// shared is a server that tests have databases of.
var shared *server

func TestMain(m *testing.M) {
	flag.Parse()
	code := 1
	dir, err := os.MkdirTemp("", "gridfan-postgres")
	if err == nil {
		shared = &server{dir: dir}
		if err = shared.launch(); err == nil {
			code = m.Run()
		}
		shared.stop()
		err = errors.Join(err, os.RemoveAll(dir))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// server is a PostgreSQL server of our own.
type server struct {
	dir  string
	port int
	cmd  *exec.Cmd
}

// database is one that ends with the test.
type database struct {
	*server
	t    testing.TB
	name string
	db   *sql.DB // its owner
}

var databases atomic.Int64

// newDatabase makes a database on the shared server.
func newDatabase(t testing.TB) *database {
	t.Helper()
	name := fmt.Sprintf("shop%d", databases.Add(1))
	shared.open(t, "postgres").exec("CREATE DATABASE " + name)
	return shared.open(t, name)
}

// open gives the owner's way to a database.
func (s *server) open(t testing.TB, name string) *database {
	t.Helper()
	d := &database{server: s, t: t, name: name, db: sql.OpenDB(stdlib.GetConnector(*s.config(name)))}
	t.Cleanup(func() { _ = d.db.Close() })
	return d
}

// newServer starts a server for one test.
func newServer(t testing.TB) *server {
	t.Helper()
	s := &server{dir: t.TempDir()}
	if err := s.launch(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.stop)
	return s
}

// account gives whom the server runs as: it refuses to be root's.
func account() (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, errors.Join(err1, err2)
	}
	return nil, errors.New("PostgreSQL does not run as root, and there is no user postgres or nobody")
}

// launch makes the files of a server and starts it.
func (s *server) launch() error {
	who, err := account()
	if err != nil {
		return err
	}
	password, data := filepath.Join(s.dir, "password"), filepath.Join(s.dir, "data")
	if err := errors.Join(os.WriteFile(password, []byte(canary+"\n"), 0o644), os.Mkdir(data, 0o700)); err != nil {
		return err
	}
	if who != nil {
		if err := os.Chown(data, int(who.Uid), int(who.Gid)); err != nil {
			return err
		}
		// A folder of tests is their user's alone.
		for d := s.dir; d != filepath.Clean(os.TempDir()) && d != "/"; d = filepath.Dir(d) {
			if err := os.Chmod(d, 0o755); err != nil {
				return err
			}
		}
	}
	initdb := exec.Command(filepath.Join(*binaries, "initdb"), "-D", data, "-U", "owner", "--pwfile", password, "-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "-N")
	initdb.SysProcAttr, initdb.Dir = &syscall.SysProcAttr{Credential: who}, data
	if out, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", initdb.Args, err, out)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.port = l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		return err
	}
	return s.start()
}

// start starts the server and waits until it answers.
func (s *server) start() error {
	who, err := account()
	if err != nil {
		return err
	}
	data := filepath.Join(s.dir, "data")
	s.cmd = exec.Command(filepath.Join(*binaries, "postgres"), "-D", data, "-p", strconv.Itoa(s.port),
		"-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off")
	s.cmd.SysProcAttr, s.cmd.Dir = &syscall.SysProcAttr{Credential: who}, data
	var log bytes.Buffer
	s.cmd.Stderr = &log
	if err := s.cmd.Start(); err != nil {
		return err
	}
	for deadline := time.Now().Add(time.Minute); ; {
		db := sql.OpenDB(stdlib.GetConnector(*s.config("postgres")))
		err := db.Ping()
		_ = db.Close()
		switch {
		case err == nil:
			return nil
		case time.Now().After(deadline):
			s.stop()
			return fmt.Errorf("PostgreSQL does not start: %w\n%s", err, log.String())
		}
		time.Sleep(50 * time.Millisecond) // sleep: the server says nowhere else that it is there
	}
}

// stop ends the server at once, as a crash would.
func (s *server) stop() {
	if s.cmd != nil && s.cmd.Process != nil {
		_ = s.cmd.Process.Signal(syscall.SIGQUIT)
		_ = s.cmd.Wait()
	}
	s.cmd = nil
}

// config is the owner's way in.
func (s *server) config(name string) *pgx.ConnConfig {
	c, err := pgx.ParseConfig(fmt.Sprintf("postgres://owner:%s@127.0.0.1:%d/%s?sslmode=disable", escaped, s.port, name))
	if err != nil {
		panic(err) // a text of our own
	}
	return c
}

func (s *database) dsn(user, password string) string {
	return fmt.Sprintf("postgres://%s:%s@127.0.0.1:%d/%s?sslmode=disable", user, password, s.port, s.name)
}

// exec runs statements as the owner.
func (s *database) exec(text string, args ...any) {
	s.t.Helper()
	if _, err := s.db.ExecContext(s.t.Context(), text, args...); err != nil {
		s.t.Fatalf("%s: %v", strings.SplitN(text, "\n", 2)[0], err)
	}
}

// fetcher reads a table as the owner.
func (s *database) fetcher(c Config) *Fetcher {
	s.t.Helper()
	if c.DSN.IsZero() {
		c.DSN = secret.New(s.dsn("owner", escaped))
	}
	c.Driver = Postgres
	return newFetcher(s.t, c, Options{})
}

// read fetches until there is no further page, and a listing to its end.
func read(t testing.TB, f *Fetcher, cursor json.RawMessage) ([]record.Row, json.RawMessage, *poll.Page) {
	t.Helper()
	var all []record.Row
	for range 10_000 {
		page, err := f.Fetch(t.Context(), cursor)
		if err != nil {
			t.Fatal(err)
		}
		if len(page.Rejected) != 0 {
			t.Fatalf("rejected: %s: %s", page.Rejected[0].Raw, page.Rejected[0].Reason)
		}
		all, cursor = append(all, page.Rows...), page.Next
		if !page.More {
			return all, cursor, page
		}
	}
	t.Fatal("there is no end of pages")
	return nil, nil, nil
}
