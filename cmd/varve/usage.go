package main

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// helpWidth is how wide help is at most, for terminals of 80 columns.
const helpWidth = 79

// printHelp is what --help and "varve help" show: the long words, then usage.
func printHelp(c *cobra.Command, _ []string) {
	out := c.OutOrStdout()
	if words := strings.TrimSpace(c.Long); words != "" {
		fmt.Fprintf(out, "%s\n\n", words)
	}
	writeUsage(out, c)
}

func printUsage(c *cobra.Command) error {
	writeUsage(c.OutOrStderr(), c)
	return nil
}

func writeUsage(out io.Writer, c *cobra.Command) {
	line := c.CommandPath()
	if c.Runnable() {
		line = c.UseLine()
	}
	if c.HasAvailableSubCommands() {
		line = c.CommandPath() + " COMMAND"
	}
	fmt.Fprintf(out, "Usage:\n  %s\n", line)
	if len(c.Aliases) > 0 {
		fmt.Fprintf(out, "\nAlso called:\n  %s\n", strings.Join(c.Aliases, ", "))
	}
	if c.HasExample() {
		fmt.Fprintf(out, "\nExamples:\n%s\n", c.Example)
	}
	for _, g := range c.Groups() {
		writeCommands(out, g.Title, c, g.ID)
	}
	if !c.AllChildCommandsHaveGroup() {
		title := "Commands:"
		if len(c.Groups()) > 0 {
			title = "Further:"
		}
		writeCommands(out, title, c, "")
	}
	if c.HasAvailableLocalFlags() {
		fmt.Fprintf(out, "\nFlags:\n")
		writeFlags(out, c.LocalFlags())
	}
	if c.HasAvailableSubCommands() {
		fmt.Fprintf(out, "\n\"%s COMMAND --help\" says more about a command.\n", c.CommandPath())
	}
}

func writeCommands(out io.Writer, title string, c *cobra.Command, group string) {
	var rows [][2]string
	for _, sub := range c.Commands() {
		if sub.GroupID == group && (sub.IsAvailableCommand() || sub.Name() == "help") {
			rows = append(rows, [2]string{sub.Name(), sub.Short})
		}
	}
	if len(rows) == 0 {
		return
	}
	fmt.Fprintf(out, "\n%s\n", title)
	writePairs(out, rows)
}

// writeFlags lists flags, a switch without the value that it could be given.
func writeFlags(out io.Writer, flags *pflag.FlagSet) {
	var rows [][2]string
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		name := "    --" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", --" + f.Name
		}
		value, usage := pflag.UnquoteUsage(f)
		if value != "" {
			value = strings.ToUpper(value)
			if f.NoOptDefVal != "" {
				value = "[" + value + "]"
			}
			name += " " + value
		}
		if f.Value.Type() != "bool" && f.DefValue != "" && f.DefValue != "0" && f.DefValue != "0s" {
			usage += " (default " + f.DefValue + ")"
		}
		rows = append(rows, [2]string{name, usage})
	})
	writePairs(out, rows)
}

// writePairs writes two columns, the second one broken between words.
func writePairs(out io.Writer, rows [][2]string) {
	const indent, gap = 2, 2
	left := 0
	for _, row := range rows {
		left = max(left, utf8.RuneCountInString(row[0]))
	}
	margin := indent + left + gap
	for _, row := range rows {
		fmt.Fprintf(out, "%*s%-*s%*s%s\n", indent, "", left, row[0], gap, "",
			strings.Join(breakWords(row[1], helpWidth-margin), "\n"+strings.Repeat(" ", margin)))
	}
}

// breakWords breaks text into lines of at most width columns, as far as its
// words allow it.
func breakWords(text string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}
