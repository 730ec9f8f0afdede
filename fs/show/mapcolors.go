package show

import "fmt"

// mapHues are the colours of a few layers. They are those of Okabe and Ito, which people
// with any kind of colour blindness tell apart, without black, yellow and grey: these do
// not show on every background, and grey is the base's.
var mapHues = [...][3]int{
	{0x00, 0x72, 0xb2}, // blue
	{0xe6, 0x9f, 0x00}, // orange
	{0x00, 0x9e, 0x73}, // bluish green
	{0xcc, 0x79, 0xa7}, // reddish purple
	{0x56, 0xb4, 0xe9}, // sky blue
}

// mapShaded are the hues of many layers, in shades. Sky blue is not among them: it is a
// shade of blue.
const mapShaded = 4

const (
	mapLeafColor = "#d55e00" // vermillion
	mapBaseColor = "#8b929b"
	// mapDamageColor is none of the layers'.
	mapDamageColor = "#d1001f"
)

// Shades of the oldest and of the newest of many layers, in percent: how far towards
// black, below zero, and towards white.
const mapOldest, mapNewest = -30, 32

// mapColor is the colour of the layer with that number, counted from 0 at the bottom, of
// the n between the base and the leaf. Neighbours have other hues. Where there are more
// than hues, no two have the same colour: the newer, the lighter.
func mapColor(i, n int) string {
	c := mapHues[i%len(mapHues)]
	if n > len(mapHues) {
		c = mapHues[i%mapShaded]
		shade := mapOldest + (mapNewest-mapOldest)*i/(n-1)
		for k := range c {
			if shade >= 0 {
				c[k] += (255 - c[k]) * shade / 100
			} else {
				c[k] += c[k] * shade / 100
			}
		}
	}
	return fmt.Sprintf("#%02x%02x%02x", c[0], c[1], c[2])
}
