package fs

// CheckMountOptions says whether Options.MountOptions may have these values;
// the error names the one that is unknown. A command line asks before it does
// anything.
func CheckMountOptions(options []string) error {
	_, err := mountOptions(options)
	return err
}
