// Package version says which build of Clarion a program is.
package version

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
)

// release is set by the linker for a release: -X github.com/clarionlb/clarion/internal/version.release=v1.2.3.
var release string

// String is the version of this build: the release's, or else what Go recorded of the module, such as a pseudo-version
// with the commit; "unknown" where it recorded nothing.
func String() string {
	if release != "" {
		return release
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}

// Flag adds --version to flags: it prints the program's name, its version, and what it was built with and for, and ends
// the program.
func Flag(flags *flag.FlagSet, program string) {
	flags.BoolFunc("version", "print the version and end", func(string) error {
		fmt.Println(program, String(), runtime.Version(), runtime.GOOS+"/"+runtime.GOARCH)
		os.Exit(0)
		return nil
	})
}
