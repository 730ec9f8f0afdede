// Package manpage writes manual pages in man(7), from the words that a command's
// help shows, so that page and help cannot differ.
//
// cobra's own generator takes those words for Markdown: the "_" and "*" of a
// snapshot's name would become italics, and the tables would flow into each other.
package manpage

import (
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Page is what stands around the words of every page.
type Page struct {
	Version string    // of the program: "varve 1.2.3"
	Date    time.Time // zero leaves it out
	// ExitStatus are the exit codes and what they mean.
	ExitStatus [][2]string
	// SeeAlso are further pages to name, such as "varve(5)".
	SeeAlso []string
}

// Name is the name of a command's page: varve-mount for "varve mount".
func Name(c *cobra.Command) string {
	return strings.ReplaceAll(c.CommandPath(), " ", "-")
}

// Write writes the page of a command, section 1.
func (p Page) Write(w io.Writer, c *cobra.Command) error {
	var b strings.Builder
	b.WriteString(".\\\" Made by \"varve man\" from the help of the program.\n")
	b.WriteString(p.Title(Name(c), 1))
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n", Escape(Name(c)), Escape(lowerFirst(c.Short)))
	b.WriteString(".SH SYNOPSIS\n")
	b.WriteString(synopsis(c))
	if len(c.Aliases) > 0 {
		fmt.Fprintf(&b, ".PP\nAlso called:\n.B %s\n", Escape(strings.Join(c.Aliases, ", ")))
	}
	b.WriteString(".SH DESCRIPTION\n")
	b.WriteString(paragraphs(c.Long))
	if c.HasAvailableSubCommands() {
		b.WriteString(commands(c))
	}
	if c.HasAvailableLocalFlags() {
		b.WriteString(".SH OPTIONS\n")
		b.WriteString(options(c.LocalFlags()))
	}
	if len(p.ExitStatus) > 0 {
		b.WriteString(".SH EXIT STATUS\n")
		for _, row := range p.ExitStatus {
			fmt.Fprintf(&b, ".TP\n.B %s\n%s\n", Escape(row[0]), Escape(row[1]))
		}
	}
	if c.HasExample() {
		b.WriteString(".SH EXAMPLES\n")
		b.WriteString(literal(breakCommands(c.Example)))
	}
	b.WriteString(seeAlso(c, p.SeeAlso))
	_, err := io.WriteString(w, b.String())
	return err
}

// Title is a page's first line.
func (p Page) Title(name string, section int) string {
	date := ""
	if !p.Date.IsZero() {
		date = p.Date.UTC().Format("2006-01-02")
	}
	manual := map[int]string{1: "User Commands", 5: "File Formats", 8: "System Administration"}[section]
	return fmt.Sprintf(".TH %s %d %q %q %q\n", Escape(strings.ToUpper(name)), section, date, p.Version, manual)
}

func lowerFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToLower(s[:1]) + s[1:]
}

// synopsis is a command's usage line: what is to be written as it is in bold, what
// stands for something in italics.
func synopsis(c *cobra.Command) string {
	_, arguments, _ := strings.Cut(c.Use, " ")
	var b strings.Builder
	fmt.Fprintf(&b, ".B %s\n", Escape(c.CommandPath()))
	var words []string
	if c.HasAvailableLocalFlags() {
		words = append(words, `[\fIFLAGS\fR]`)
	}
	if arguments == "" && c.HasAvailableSubCommands() {
		arguments = "COMMAND"
	}
	for _, word := range strings.Fields(arguments) {
		words = append(words, argument(word))
	}
	if len(words) > 0 {
		b.WriteString(strings.Join(words, " ") + "\n")
	}
	return b.String()
}

// argument sets one word of a usage line: its letters, not the brackets around it.
func argument(word string) string {
	start := strings.IndexFunc(word, isWord)
	if start < 0 {
		return Escape(word)
	}
	end := strings.LastIndexFunc(word, isWord) + 1
	font := "I"
	if inner := word[start:end]; inner == strings.ToLower(inner) {
		font = "B"
	}
	return Escape(word[:start]) + `\f` + font + Escape(word[start:end]) + `\fR` + Escape(word[end:])
}

func isWord(r rune) bool { return !strings.ContainsRune("()[]|.", r) }

// commands lists the commands below c in the groups of its help.
func commands(c *cobra.Command) string {
	var b strings.Builder
	b.WriteString(".SH COMMANDS\n")
	group := func(title, id string) {
		first := true
		for _, sub := range c.Commands() {
			if sub.GroupID != id || !sub.IsAvailableCommand() || sub.Name() == "help" {
				continue
			}
			if first && title != "" {
				fmt.Fprintf(&b, ".SS %s\n", Escape(title))
			}
			first = false
			words := `\fB` + Escape(sub.CommandPath()) + `\fR`
			if c.HasParent() {
				fmt.Fprintf(&b, ".TP\n%s\n%s\n", words, Escape(sub.Short))
				continue
			}
			fmt.Fprintf(&b, ".TP\n\\fB%s\\fR(1)\n%s\n", Escape(Name(sub)), Escape(sub.Short))
		}
	}
	for _, g := range c.Groups() {
		group(strings.TrimSuffix(g.Title, ":"), g.ID)
	}
	rest := ""
	if len(c.Groups()) > 0 {
		rest = "Further"
	}
	group(rest, "")
	return b.String()
}

// options lists flags with what they mean.
func options(flags *pflag.FlagSet) string {
	var b strings.Builder
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		value, usage := pflag.UnquoteUsage(f)
		b.WriteString(".TP\n")
		if f.Shorthand != "" {
			fmt.Fprintf(&b, `\fB%s\fR, `, Escape("-"+f.Shorthand))
		}
		fmt.Fprintf(&b, `\fB%s\fR`, Escape("--"+f.Name))
		if value != "" {
			fmt.Fprintf(&b, ` \fI%s\fR`, Escape(strings.ToUpper(value)))
		}
		if f.Value.Type() != "bool" && f.DefValue != "" && f.DefValue != "0" && f.DefValue != "0s" && f.DefValue != "[]" {
			usage += " (default " + f.DefValue + ")"
		}
		fmt.Fprintf(&b, "\n%s\n", Escape(usage))
	})
	return b.String()
}

// paragraphs sets text as help shows it: paragraphs with empty lines between
// them; one whose lines are indented stays as it is.
func paragraphs(text string) string {
	var b strings.Builder
	for i, p := range strings.Split(strings.TrimSpace(text), "\n\n") {
		if i > 0 {
			b.WriteString(".PP\n")
		}
		if strings.HasPrefix(p, "  ") {
			b.WriteString(literal(p))
			continue
		}
		for line := range strings.Lines(p) {
			b.WriteString(Escape(strings.TrimSpace(line)) + "\n")
		}
	}
	return b.String()
}

// literalWidth is how many columns of 80 a page leaves to text.
const literalWidth = 72

// beforeComment is the gap that aligns the comments of an example.
var beforeComment = regexp.MustCompile(` {2,}# `)

// literal sets lines that must not flow. Where one would be too wide their
// comments are drawn nearer.
func literal(text string) string {
	lines := strings.Split(strings.Trim(text, "\n"), "\n")
	wide := false
	for i, line := range lines {
		lines[i] = strings.TrimPrefix(line, "  ")
		wide = wide || utf8.RuneCountInString(lines[i]) > literalWidth
	}
	var b strings.Builder
	b.WriteString(".nf\n")
	for _, line := range lines {
		if wide {
			line = beforeComment.ReplaceAllString(line, "  # ")
		}
		b.WriteString(Escape(line) + "\n")
	}
	b.WriteString(".fi\n")
	return b.String()
}

// breakCommands lets commands that are too wide go on in a line of their own, as
// the shell takes it. One with a comment stays: its comment is drawn nearer.
func breakCommands(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if utf8.RuneCountInString(line) <= literalWidth || strings.Contains(line, "# ") {
			continue
		}
		if at := strings.LastIndexByte(line[:literalWidth-1], ' '); at > 0 {
			lines[i] = line[:at] + " \\\n      " + line[at+1:]
		}
	}
	return strings.Join(lines, "\n")
}

// seeAlso names the page above, those beside it and others.
func seeAlso(c *cobra.Command, others []string) string {
	var pages []string
	if c.HasParent() {
		pages = append(pages, Name(c.Root())+"(1)")
	}
	pages = append(pages, others...)
	for i, page := range pages {
		name, section, _ := strings.Cut(page, "(")
		pages[i] = fmt.Sprintf(`\fB%s\fR(%s`, Escape(name), section)
	}
	return ".SH SEE ALSO\n" + strings.Join(pages, ",\n") + "\n"
}

// Escape makes roff take text for text (groff_char(7), man-pages(7)).
func Escape(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "~", `\(ti`, "^", `\(ha`, "`", `\(ga`, "'", `\(aq`, `"`, `\(dq`).Replace(text)
	if strings.HasPrefix(text, ".") {
		text = `\&` + text
	}
	return text
}
