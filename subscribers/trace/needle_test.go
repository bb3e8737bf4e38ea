package trace

import "testing"

func TestNeedle(t *testing.T) {
	const guid = "6F9619FF-8B86-D011-B42D-00C04FC964FF"
	for _, test := range []struct {
		what, value string
		want        bool
	}{
		{"PO-1", "usmf/po-1", true},
		{"PO-1", "usmf/po-12", false},
		{"{" + guid + "}", "accounts(6f9619ff-8b86-d011-b42d-00c04fc964ff)", true},
		{guid, "6f9619ff-8b86-d011-b42d-00c04fc964f0", false},
		// As screens show it.
		{"6F9619FF", guid, true},
		{"6f9619ff-8b86-d", "accounts(" + guid + ")", true},
		{"6f9619ff-8b87", guid, false},
		{"6F9619F", guid, false},            // too short to be meant
		{"8b86d011", guid, false},           // not its beginning
		{"12345678", "po-12345678x", false}, // no GUID
		{"12345678", "usmf/12345678", true},
	} {
		if got := newNeedle(test.what).is(test.value); got != test.want {
			t.Errorf("%q in %q: %v", test.what, test.value, got)
		}
	}
}
