package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// The completion of bash, with the library that the script is for.
func TestCompletionInBash(t *testing.T) {
	const library = "/usr/share/bash-completion/bash_completion"
	if _, err := os.Stat(library); err != nil {
		t.Fatal(err, "; make deps installs it")
	}
	dir := shellDisk(t)
	script := `
source ` + library + `
source <(varve completion bash)
complete_line() {
	COMP_LINE=$1; COMP_POINT=${#1}
	read -ra COMP_WORDS <<<"$1"
	[[ $1 == *' ' ]] && COMP_WORDS+=('')
	COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMP_TYPE=9; COMP_KEY=9; COMPREPLY=()
	compopt() { :; }
	__start_varve
	echo "$1> ${COMPREPLY[*]}"
}
complete_line 'varve sna'
complete_line 'varve revert m'
complete_line 'varve revert mnt bef'
complete_line 'varve export mnt before-upgrade x --format q'
`
	r := shell(t, dir, "bash", "--norc", "-c", script)
	want := `varve sna> snapshot
varve revert m> mnt
varve revert mnt bef> before-upgrade
varve export mnt before-upgrade x --format q> qcow2
`
	var got strings.Builder
	for line := range strings.Lines(r.stdout) {
		got.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	if got.String() != want || r.stderr != "" {
		t.Errorf("bash completes\n%swant\n%s%s", got.String(), want, r.stderr)
	}
}

// The completion of fish.
func TestCompletionInFish(t *testing.T) {
	dir := shellDisk(t)
	r := shell(t, dir, "fish", "--no-config", "-c", `
varve completion fish | source
for line in 'varve sna' 'varve revert m' 'varve revert mnt bef' 'varve export mnt before-upgrade x --format q'
	for candidate in (complete -C $line)
		echo (string split \t -- $candidate)[1]
	end
end`)
	if want := "snapshot\nmnt\nbefore-upgrade\nqcow2\n"; r.stdout != want || r.stderr != "" {
		t.Errorf("fish completes\n%swant\n%s%s", r.stdout, want, r.stderr)
	}
}

// The completion of zsh, by the tabulator of a zsh on a pseudo-terminal. Ctrl-G there
// notes the line as it is by then, and clears it.
func TestCompletionInZsh(t *testing.T) {
	dir := shellDisk(t)
	r := shell(t, dir, "timeout", "20", "zsh", "-f", "-c", `
zmodload zsh/zpty
zpty z zsh -f -i
zpty -w z 'autoload -U compinit && compinit -D -u; source <(varve completion zsh)
note() { print -r -- "$BUFFER|" >>noted; BUFFER= }; zle -N note; bindkey "^G" note; PS1="REA""DY"'
zpty -r -m z output '*READY*'
for line in 'varve sna' 'varve revert m' 'varve revert mnt bef' 'varve export mnt before-upgrade x --format q'; do
	zpty -w -n z "$line"$'\t\a'
done
zpty -w z exit
while zpty -r z output; do :; done`)
	const want = "varve snapshot |\nvarve revert mnt |\nvarve revert mnt before-upgrade |\nvarve export mnt before-upgrade x --format qcow2 |\n"
	noted, err := os.ReadFile(dir + "/noted")
	if err != nil || string(noted) != want || r.stderr != "" {
		t.Errorf("zsh completes, %v\n%swant\n%s%s", err, noted, want, r.stderr)
	}
}

// shellDisk is a directory with a mounted disk that has a snapshot, and varve.
func shellDisk(t *testing.T) string {
	t.Helper()
	dir, _ := mounted(t, 4<<20, 1<<20)
	must(t, dir, "snapshot", "mnt", "before-upgrade")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(exe, dir+"/varve"); err != nil {
		t.Fatal(err)
	}
	return dir
}

// shell runs a shell in such a directory.
func shell(t *testing.T, dir, name string, args ...string) result {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), asVarve+"=1", "PATH="+dir+":"+os.Getenv("PATH"), "HOME="+dir, "LC_ALL=C.UTF-8")
	return finish(t, cmd)
}
