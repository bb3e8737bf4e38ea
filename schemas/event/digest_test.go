package event_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/gridfan/gridfan/schemas/event"
)

// Digests are stored with every event, and a repeated event is known by them:
// they stay what they were when gridfan first wrote them.
func TestDigestsStay(t *testing.T) {
	many := `{"m0":0` + strings.Repeat(`,`+strings.Repeat(`"k":{"k":[]},`, 20)+`"z":[`+strings.Repeat(`1,"x",{},`, 600)+`null]`, 3) + `}`
	tests := []struct{ name, want, data string }{
		{"order", "b85118217e92d1c764ff236e373224c5", orderData},
		{"layout", "2679d4a85cdd069517866d1b8457c8a6", "{ \"b\" : [2, {\"c\":null}],\n\"a\":1 }"},
		{"no layout", "2679d4a85cdd069517866d1b8457c8a6", `{"a":1,"b":[2,{"c":null}]}`},
		{"empty object", "1c0148b27a1cff763fe2a9f96acefd4e", `{}`},
		{"empty array", "03fa710d5614f95d90353d4ad4312662", `[]`},
		{"nested empties", "70dfc4bab7b6b081959fe756786bb4f7", `[[],{},[{}],""]`},
		{"null", "f937a2c09c8e90a513d478df93b7b119", `null`},
		{"text of null", "d38cc4173094303d2c5adf421627964c", `"null"`},
		{"true", "e140945d4b919712e28489d745c4992f", ` true `},
		{"number", "b35ab55ae76afc6699935d09a24215d0", `-1.50e+400`},
		{"negative zero", "4c200579e8cba0dc80e7cc99bbd90099", `-0`},
		{"escapes", "d33611c1d80637db7cab58ed17fef916", `{"a\u0041\/":"\b\f\n\r\t\"\\\/\u00e9\ud83d\ude00"}`},
		{"escapes undone", "d33611c1d80637db7cab58ed17fef916", `{"aA/":"\u0008\u000c\u000a\u000D\u0009\u0022\u005c/é😀"}`},
		{"half a pair", "9b37a53232e76385a98fcb85a9769538", `["\ud800","\udc00x","\ud800\u0041"]`},
		{"half a pair in a name", "522bfa33d001766264c278f237418c14", `{"\ud800":1,"\udfff":2}`},
		{"replacement character", "f29b24fd999138e812413a93746e56d4", `["\ufffd","�",{"�":"\u0041"}]`},
		{"names out of order", "60dc78aa1fec121611bdb8f4144c1568", `{"b":1,"a":2,"":3,"ab":4,"B":5,"é":6}`},
		{"a name twice", "ea1d6428ddfba7e0938a9d83f6b8a794", `{"b":1,"a":2,"b":3,"b":1}`},
		{"many", "2d77c834c73405604ba82e49250cfdbc", many},
		{"long text", "81a1b6df462185e51d9abad78237a9a1", `{"x":"` + strings.Repeat("long text é ", 2000) + `"}`},
		{"two values", "1c0148b27a1cff763fe2a9f96acefd4e", `{} {}`},
		{"bad byte", "6cc8d278ec13f9aa04ff034c6de90d0c", "[\"\xff\",{\"\xc3\":1}]"},
		{"control character", "c6df99ac62fc4f0a91016f7754fd6389", "[\"\x01\"]"},
		{"byte order mark", "8f3b6ee6ef47e50a3b2f3c9353e784ba", "\xef\xbb\xbf{}"},
		{"cut off", "a57a7905d05e1528dabfa597a9a54746", `{"a":[1,2`},
		{"trailing comma", "965acd32ab272c9195410a2eacb521f9", `[1,]`},
		{"leading zero", "cd445dfda5f2e59f0b87b10332bdf06f", `[01]`},
		{"no JSON", "f7417c54816c2d4b206e451ecdc27f08", `hello`},
		{"nothing", "8c081f8585bb09873199e9ea51b422f7", ``},
		{"deep", "dbd005b3987961252e5c0a381f40202e", strings.Repeat(`{"b":1,"a":[`, 4000) + `"x"` + strings.Repeat("]}", 4000)},
		{"deepest", "36f355d0ce42edb40ac6b1b274df266b", strings.Repeat(`[`, 10000) + strings.Repeat("]", 10000)},
		{"too deep", "43dcb711400664401bb70acfe036ef0e", strings.Repeat(`[`, 10001) + strings.Repeat("]", 10001)},
	}
	for _, tt := range tests {
		data := []byte(tt.data)
		if got := event.Digest("Contoso.Order", "/a/b", data, true); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
		if !bytes.Equal(data, []byte(tt.data)) {
			t.Errorf("%s: data was changed", tt.name)
		}
	}
	if got, want := event.Digest("", "", []byte("{}"), false), "c4a087c4aa4c075f02ea460840adf2f4"; got != want {
		t.Errorf("bytes: got %q, want %q", got, want)
	}
	if got, want := event.Digest("t", "", nil, false), "ea5eaf4084552eb787603b148df69053"; got != want {
		t.Errorf("nothing: got %q, want %q", got, want)
	}
}
