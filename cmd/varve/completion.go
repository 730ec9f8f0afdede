package main

import (
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// The shells ask "varve __complete WORDS..." at each press of the tabulator.
// What an argument is completed with follows from its name in the command's
// usage line (DISK, NAME, MOUNTPOINT), so a new command is completed without a
// line here. Nothing is printed that is no candidate, no error either.

// completionTime is how long a press of the tabulator may look at disks. A disk
// on a file system that hangs is given up; the process ends all the same.
const completionTime = 700 * time.Millisecond

// completer gives the candidates for an argument that begins with prefix, args
// being those before it. With no candidate the shell completes file names,
// unless it must not.
type completer func(args []string, prefix string) (candidates []cobra.Completion, directive cobra.ShellCompDirective)

const (
	filesToo   = cobra.ShellCompDirectiveDefault
	onlyThese  = cobra.ShellCompDirectiveNoFileComp
	onlyDirs   = cobra.ShellCompDirectiveFilterDirs
	goOnTyping = cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
)

// addCompletion completes the arguments and the flags of all commands below
// root, except where a command has its own way.
func addCompletion(root *cobra.Command) {
	for _, c := range root.Commands() {
		addCompletion(c)
		positions, repeated := usedArguments(c)
		if c.ValidArgsFunction == nil && len(c.ValidArgs) == 0 {
			c.ValidArgsFunction = func(_ *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
				at := len(args)
				if at >= len(positions) && repeated {
					at = len(positions) - 1
				}
				if at >= len(positions) {
					return nil, onlyThese
				}
				return completeWords(positions[at], args, prefix)
			}
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if _, own := c.GetFlagCompletionFunc(f.Name); own || f.Value.Type() == "bool" {
				return
			}
			value, _ := pflag.UnquoteUsage(f)
			// It can only fail where a flag has one already.
			_ = c.RegisterFlagCompletionFunc(f.Name, func(_ *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
				return completeWords([]string{value}, args, prefix)
			})
		})
	}
}

// completeWords completes what may be any of the given words of a usage line.
func completeWords(words, args []string, prefix string) (candidates []cobra.Completion, directive cobra.ShellCompDirective) {
	type answer struct {
		candidates []cobra.Completion
		directive  cobra.ShellCompDirective
	}
	given := make(chan answer, 1)
	go func() {
		a := answer{directive: onlyThese}
		for _, word := range words {
			more, d := completerFor(word)(args, prefix)
			a.candidates = append(a.candidates, more...)
			if d != onlyThese {
				a.directive = d
			}
		}
		given <- a
	}()
	select {
	case a := <-given:
		return a.candidates, a.directive
	case <-time.After(completionTime):
		return nil, onlyThese
	}
}

// completerFor is how an argument or a flag's value of that name is completed.
func completerFor(word string) completer {
	switch word {
	case "DISK":
		return completeDisk
	case "NAME", "OLD":
		return completeNames()
	case "LAYER":
		return completeNames("base")
	case "A", "B":
		return completeNames("base", "leaf")
	case "JOB":
		return completeJob
	case "FORMAT":
		return fixed("raw", "qcow2")
	case "OPTIONS":
		return completeOptions
	case "MOUNTPOINT", "DIR", "NEWDISK":
		return func([]string, string) ([]cobra.Completion, cobra.ShellCompDirective) { return nil, onlyDirs }
	case "SOURCE", "IMAGE", "OUT", "FILE", "PATH":
		return func([]string, string) ([]cobra.Completion, cobra.ShellCompDirective) { return nil, filesToo }
	}
	if word != "" && word == strings.ToLower(word) {
		return fixed(word) // a word to be written as it is, such as leaf
	}
	return fixed() // a size, a new name: nothing is known of it
}

// fixed offers the same few words always.
func fixed(words ...string) completer {
	return func(_ []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		var list []cobra.Completion
		for _, w := range words {
			if strings.HasPrefix(w, prefix) {
				list = append(list, w)
			}
		}
		return list, onlyThese
	}
}

// usedArguments takes the arguments out of a command's usage line: for each
// position the words that can stand there. "revert DISK NAME" has two with one
// word each, "export DISK (NAME | base | leaf) OUT" three; repeated says that the
// last one may come again, as in "[DISK...]". Flags in the line do not count, nor
// do their values.
func usedArguments(c *cobra.Command) (positions [][]string, repeated bool) {
	_, line, _ := strings.Cut(c.Use, " ")
	repeated = strings.Contains(line, "...")
	line = strings.ReplaceAll(line, "...", "")
	line = strings.ReplaceAll(line, "|", " | ")
	for _, b := range []string{"(", ")", "[", "]"} {
		line = strings.ReplaceAll(line, b, " "+b+" ")
	}
	var group []string // the words of an open bracket
	depth, flagBefore, or := 0, false, false
	for _, word := range strings.Fields(line) {
		afterFlag, afterOr := flagBefore, or
		flagBefore, or = strings.HasPrefix(word, "-"), word == "|"
		switch {
		case word == "(" || word == "[":
			depth++
		case word == ")" || word == "]":
			depth--
			if depth == 0 && len(group) > 0 {
				positions = append(positions, group)
				group = nil
			}
		case or, flagBefore, afterFlag:
		case depth > 0:
			group = append(group, word)
		case afterOr && len(positions) > 0:
			positions[len(positions)-1] = append(positions[len(positions)-1], word)
		default:
			positions = append(positions, []string{word})
		}
	}
	for i := range positions {
		positions[i] = exceptions(c.Name(), positions[i])
	}
	return positions, repeated
}

// exceptions are the arguments that mean something else than their name does in
// other commands.
func exceptions(command string, words []string) []string {
	switch {
	case command == "doctor":
		return []string{"DISK"} // mountpoints are among them; other files where none fits
	case command == "snapshot" && slices.Contains(words, "NAME"):
		return []string{"NEW"} // a name that is not there yet
	case command == "revert" && slices.Contains(words, "NAME"):
		return append(slices.Clone(words), "base")
	}
	return words
}
