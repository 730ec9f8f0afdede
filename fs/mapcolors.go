package fs

import "fmt"

// Colours of a map. They are those of Okabe and Ito, which people with any kind of
// colour blindness tell apart, without black, yellow and grey: these do not show on
// every background, and grey is the base's. Neighbours differ in lightness too.
var mapHues = [...][3]int{
	{0x00, 0x72, 0xb2}, // blue
	{0xe6, 0x9f, 0x00}, // orange
	{0x00, 0x9e, 0x73}, // bluish green
	{0xcc, 0x79, 0xa7}, // reddish purple
	{0x56, 0xb4, 0xe9}, // sky blue
}

const (
	mapLeafColor = "#d55e00" // vermillion
	mapBaseColor = "#8b929b"
)

// mapTints are how far a colour goes towards white, in percent, and below zero towards
// black, each time that all hues were used.
var mapTints = [...]int{0, -30, 25}

// mapColor is the colour of the layer in the middle of a chain with that number,
// counted from 0 at the bottom.
func mapColor(i int) string {
	c := mapHues[i%len(mapHues)]
	tint := mapTints[i/len(mapHues)%len(mapTints)]
	for k := range c {
		if tint >= 0 {
			c[k] += (255 - c[k]) * tint / 100
		} else {
			c[k] += c[k] * tint / 100
		}
	}
	return fmt.Sprintf("#%02x%02x%02x", c[0], c[1], c[2])
}
