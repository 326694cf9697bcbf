"""The bridge as a process, or a part of one: in Crossbar's containers, and by itself."""
