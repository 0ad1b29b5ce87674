// Walks the tiles of one MATMUL on the output-stationary array: which elements of k enter, and which finished row leaves.
//
// Time is divided into slots, one for each tile of ROWS x COLS outputs; a slot streams the whole of k. The sums of a tile
// leave through the drain registers, one row a cycle, while the next tile streams. So a slot lasts at least as many cycles
// as its tile has rows; in those the rows' input zero points are read, one a cycle, as the skew needs them.

module npu_os_sequencer
  import npu_machine::*;
  import npu_types::*;
(
    input  logic                          clk,
    input  logic                          rst,
    input  logic                          start,
    input  job_t                          job,          // from the cycle after `start`
    output logic                          weight_read,  // and act_read, for both operands' elements of one k
    output logic        [           31:0] batch,
    output logic        [           31:0] m0,
    output logic        [           31:0] n0,
    output logic        [           31:0] k,
    input  logic        [            3:0] shift,        // of element k and the next one
    output logic                          zero_read,
    output logic        [           31:0] zero_m,
    output logic                          scale_read,
    output logic        [           31:0] scale_batch,
    output logic        [           31:0] scale_m,
    input  logic        [           31:0] row_scale,    // multiplier and shift of row scale_m
    // what the array does
    output logic        [COLUMN_BITS-1:0] columns,      // that take part in this tile
    output edge_t                         feed,
    output drain_t                        drain,
    output token_t                        token
);
  // ---- a slot: stream, and read the rows' zero points
  logic feeding, reading;
  logic [31:0] slot_row;
  logic [PHASE_BITS-1:0] phase;
  logic last_tile;

  logic last_phase, active, a_high, w_wide, w_high;
  npu_phases phases (.job, .phase, .last_phase, .active, .a_high, .w_wide, .w_high);

  wire [31:0] rows_left = job.m - m0, columns_left = job.n - n0;
  wire [ROW_COUNT_BITS-1:0] rows = rows_left < 32'(ROWS) ? ROW_COUNT_BITS'(rows_left) : ROW_COUNT_BITS'(ROWS);
  assign columns = columns_left < 32'(COLS) ? COLUMN_BITS'(columns_left) : COLUMN_BITS'(COLS);

  wire [31:0] depth = job.k - k;
  wire last_k = depth <= (paired(job) ? 32'd2 : 32'd1);
  wire feed_ends = feeding && last_k && last_phase;
  wire read_ends = reading && slot_row == 32'(rows) - 1;
  wire slot_ends = (feeding || reading) && (!feeding || feed_ends) && (!reading || read_ends);

  npu_folds #(.FOLD_K(0)) tiles (
      .clk, .restart(start), .advance(slot_ends), .job,
      .batch, .m0, .n0, .k0(), .first_k(), .last_k(), .last(last_tile)
  );

  always_ff @(posedge clk) begin
    if (rst) begin
      {feeding, reading} <= '0;
    end else if (start || slot_ends) begin
      {feeding, reading} <= {2{start || !last_tile}};
      {k, slot_row, phase} <= '0;
    end else begin
      if (feeding) phase <= last_phase ? '0 : phase + 1;
      if (feeding && last_phase) k <= k + (paired(job) ? 32'd2 : 32'd1);
      if (reading) slot_row <= slot_row + 1;
      if (feed_ends) feeding <= 1'b0;
      if (read_ends) reading <= 1'b0;
    end
  end

  assign weight_read = feeding;
  assign zero_read = reading;
  assign zero_m = m0 + slot_row;

  assign feed = '{
      stream: '{
          acc: '{
              valid: feeding,
              first_phase: phase == '0,
              last_phase: last_phase,
              first_fold: k == '0 && !job.acc_continue,
              byte_shift: 2'(a_high) + 2'(w_high),
              bank_row: '0
          },
          capture: feed_ends && !job.acc_hold,
          w_wide: w_wide,
          w_high: w_high
      },
      latch: k == '0 && phase == '0,
      a_high: a_high,
      first: feeding && active,
      second: feeding && active && paired(job) && depth > 1,
      shift: shift,
      rows: rows
  };

  // ---- the drain of the tile before: its rows, one a cycle, from the cycle after its last k
  logic draining, drain_last_tile;
  logic [31:0] drain_batch, drain_m0, drain_n0, drain_row;
  logic [ROW_COUNT_BITS-1:0] drain_rows;
  logic [COLUMN_BITS-1:0] drain_columns;
  wire drain_ends = draining && drain_row == 32'(drain_rows) - 1;
  always_ff @(posedge clk) begin
    if (rst) begin
      draining <= 1'b0;
    end else if (feed.stream.capture) begin
      draining <= 1'b1;
      drain_row <= '0;
      {drain_batch, drain_m0, drain_n0, drain_rows, drain_columns} <= {batch, m0, n0, rows, columns};
      drain_last_tile <= last_tile;
    end else begin
      drain_row <= drain_row + 1;
      if (drain_ends) draining <= 1'b0;
    end
  end

  assign scale_read = draining;
  assign scale_batch = drain_batch;
  assign scale_m = drain_m0 + drain_row;
  assign drain = '{valid: draining && drain_row == '0, rows: drain_rows};
  assign token = '{
      acc: '0,
      finished: draining,
      last: job.acc_hold ? feed_ends : drain_ends && drain_last_tile,
      columns: drain_columns,
      n0: drain_n0,
      row_multiplier: row_scale[14:0],
      row_shift: row_scale[21:16]
  };
endmodule
