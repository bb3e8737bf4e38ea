package deliver

import "testing"

func FuzzParseToken(f *testing.F) {
	f.Add(token{mark: [4]byte{1, 2, 3, 4}, sequence: 300, hop: 2, secret: [16]byte{9}}.String())
	f.Add("")
	f.Add("garbage")
	f.Add("AQECAwSsAgIJAAAAAAAAAAAAAAAAAAAAAA")
	f.Fuzz(func(t *testing.T, s string) {
		got, ok := parseToken(s)
		if ok && got.String() != s {
			t.Errorf("%q is read as %v, which is written %q", s, got, got)
		}
		again, ok := parseToken(token{sequence: uint64(len(s)) << 40, hop: len(s)}.String())
		if !ok || again.sequence != uint64(len(s))<<40 || again.hop != len(s) {
			t.Errorf("read as %+v, %v", again, ok)
		}
	})
}
