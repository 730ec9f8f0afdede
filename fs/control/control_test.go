package control

import "testing"

func TestAnswer(t *testing.T) {
	text := AppendAnswer([]byte("# plan: write …\n# last: …\n"), `{"operation": "delete"}`)
	if answer, ok := ParseAnswer(string(text)); !ok || answer != `{"operation": "delete"}` {
		t.Errorf("%q, %v", answer, ok)
	}
	if answer, ok := ParseAnswer("# plan: write …\n# last: …\n"); ok {
		t.Errorf("an answer %q where there is none", answer)
	}
}
