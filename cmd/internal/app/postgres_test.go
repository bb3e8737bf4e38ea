//go:build postgres && linux

package app_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/gridfan/gridfan/router/poll"
)

// This wants a PostgreSQL server of its own: make postgres runs it.
var binaries = flag.String("pgbin", "", "the folder with initdb, postgres and psql")

// database is one that ends with the test. It is asked by psql: only package sqlrows
// knows drivers.
type database struct {
	t    *testing.T
	port int
}

func newDatabase(t *testing.T) *database {
	t.Helper()
	dir, err := os.MkdirTemp("", "gridfan-postgres")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // a folder of /tmp
	password, data := filepath.Join(dir, "password"), filepath.Join(dir, "data")
	if err := errors.Join(os.WriteFile(password, []byte("open-sesame\n"), 0o644), os.Mkdir(data, 0o700), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	// It refuses to run as root.
	var who *syscall.Credential
	if os.Getuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			u, err = user.Lookup("nobody")
		}
		if err != nil {
			t.Fatal(err)
		}
		uid, _ := strconv.ParseUint(u.Uid, 10, 32)
		gid, _ := strconv.ParseUint(u.Gid, 10, 32)
		who = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(data, int(uid), int(gid)); err != nil {
			t.Fatal(err)
		}
	}
	command := func(name string, args ...string) *exec.Cmd {
		c := exec.Command(filepath.Join(*binaries, name), args...)
		c.SysProcAttr, c.Dir = &syscall.SysProcAttr{Credential: who}, data
		return c
	}
	if out, err := command("initdb", "-D", data, "-U", "owner", "--pwfile", password, "-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "-N").CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &database{t: t, port: l.Addr().(*net.TCPAddr).Port}
	l.Close()
	server := command("postgres", "-D", data, "-p", strconv.Itoa(d.port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off")
	var log bytes.Buffer
	server.Stderr = &log
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Signal(syscall.SIGQUIT)
		_ = server.Wait()
	})
	if !eventually(func() bool { _, err := d.psql("SELECT 1"); return err == nil }) {
		t.Fatal("PostgreSQL does not start")
	}
	return d
}

func (d *database) dsn() string {
	return fmt.Sprintf("postgres://owner:open-sesame@127.0.0.1:%d/postgres?sslmode=disable", d.port)
}

func (d *database) psql(text string) (string, error) {
	out, err := exec.Command(filepath.Join(*binaries, "psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", "-d", d.dsn(), "-c", text).CombinedOutput()
	return string(out), err
}

// run runs statements, and gives what they print.
func (d *database) run(text string) string {
	d.t.Helper()
	out, err := d.psql(text)
	if err != nil {
		d.t.Fatalf("%s: %v\n%s", text, err, out)
	}
	return out
}

// Rows of PostgreSQL come with every digit, over kills, those of a transaction that
// was begun early and committed late among them.
func TestPolledPostgres(t *testing.T) {
	in, d := newInbox(t), newDatabase(t)
	d.run(`CREATE TABLE shipments (id bigint PRIMARY KEY, note text, amount numeric(30,10) NOT NULL DEFAULT 12345678901234567890.0123456789, updated_at timestamptz NOT NULL DEFAULT clock_timestamp(), tx xid8 NOT NULL DEFAULT pg_current_xact_id());
		CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.tx := pg_current_xact_id(); NEW.updated_at := clock_timestamp(); RETURN NEW; END $$;
		CREATE TRIGGER stamp BEFORE INSERT OR UPDATE ON shipments FOR EACH ROW EXECUTE FUNCTION stamp();
		CREATE INDEX ON shipments (tx, id)`)
	n := 0
	g := polledThroughKills(t, in, fmt.Sprintf(`  way: { kind: custom, poll: { sql: { driver: postgres, dsn: %q, table: { name: shipments, key: id, modified: updated_at }, cursor: { kind: transaction, column: tx }, pageSize: 7 }, every: 100ms, budget: 1000/s, retry: { max: 1s } } }
`, d.dsn()), func(r *rand.Rand) {
		n++
		d.run(fmt.Sprintf("INSERT INTO shipments (id, note) VALUES (%d, 'note %d') ON CONFLICT (id) DO UPDATE SET note = excluded.note", 1+r.IntN(60), n))
	})
	// One that stays open while others are committed and polled.
	late := make(chan error, 1)
	go func() {
		_, err := d.psql("BEGIN; INSERT INTO shipments (id, note) VALUES (1001, 'late'); SELECT pg_sleep(2); COMMIT")
		late <- err
	}()
	for i := range 20 {
		d.run(fmt.Sprintf("INSERT INTO shipments (id, note) VALUES (%d, 'beside')", 2000+i))
	}
	if err := <-late; err != nil {
		t.Fatal(err)
	}
	var want []string
	for row := range strings.SplitSeq(strings.TrimSpace(d.run("SELECT id || ' ' || note FROM shipments WHERE note NOT IN (SELECT 'note ' || i FROM generate_series(1, 10) AS i)")), "\n") {
		want = append(want, row)
	}
	got := wantStates(t, in, want, func(data map[string]any) string {
		columns := data["columns"].(map[string]any)
		return fmt.Sprint(columns["id"], " ", columns["note"])
	})
	if r, ok := got["1001 late"]; !ok || !bytes.Contains(r.data, []byte("12345678901234567890.0123456789")) || r.attributes["type"] != "custom.shipments.Changed" || r.attributes["via"] != "poll" {
		t.Errorf("the late one: %v %s", r.attributes, r.data)
	}
	if s := g.state("way", poll.Polling); s.Poll.Remembered != 0 || s.Reads.Way != "sql" || strings.Contains(s.Reads.From, "sesame") {
		t.Errorf("%+v, %+v", s.Poll, s.Reads)
	}
}
